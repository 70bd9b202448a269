"""What of a guest in a worker can be changed, asked and saved: each is a request, and its answer is checked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from aiovmm.config import LimitsConfig, NetConfig, PlacedConfig, VMConfig
from aiovmm.config.ids import device_ids
from aiovmm.errors import ConfigError, PeerError, SnapshotError, StateError, UsageError
from aiovmm.lifecycle import VMState
from aiovmm.machine.ram import Ram
from aiovmm.pool.workers.plain import WorkerLost
from aiovmm.pool.workers.told_config import check_told, config_of
from aiovmm.runtime.plain import Fields, Plain
from aiovmm.runtime.timeouts import check_seconds
from aiovmm.snapshot.configuration import to_state
from aiovmm.stats.plain import from_state as stats_of

if TYPE_CHECKING:
    from aiovmm.machine.ending import Ending
    from aiovmm.pool.workers.process import Worker
    from aiovmm.runtime.home import HomeLoop
    from aiovmm.snapshot.taking import Snapshot
    from aiovmm.stats import VMStats

__all__ = ["RemoteChanges"]

T = TypeVar("T")


class RemoteChanges:
    """The part of RemoteVM that the machine in the worker answers."""

    name: Any
    state: Any
    _not_there: Any
    _worker: Worker
    _number: int
    _home: HomeLoop
    _ending: Ending
    _transition: asyncio.Lock
    _config: VMConfig
    _coming: list[PlacedConfig]  # that are being added
    _limits_now: LimitsConfig
    _left_it: bool

    # -- limits and devices

    @property
    def limits(self) -> LimitsConfig:
        """See VM.limits."""
        return self._limits_now

    def set_limits(self, **changes: float | None) -> None:
        """See VM.set_limits."""
        self._home.check_thread()
        if self.state is VMState.STOPPED:
            raise StateError(f"VM {self.name!r} has ended: it has no limits any more")
        self._limits_now = self._limits_now.changed(changes)
        self._worker.request("set_limits", self._number, limits=to_state(self._limits_now))

    async def add(self, device: PlacedConfig, *, timeout: float | None = 30.0) -> str:
        """See VM.add. Raises ConfigError also for what is of this process, and for what the worker has given up rights of."""
        check_seconds(timeout, "add(timeout=)")
        if not isinstance(device, PlacedConfig):
            raise UsageError(f"add({device!r}): give it the configuration of a device, as DiskConfig(path=...)")
        if isinstance(device, NetConfig) and device.fd:
            raise ConfigError("net.fd", "a guest in a worker process does not have this one's descriptors", "say tap=")
        kind, state = type(device).__name__, to_state(device)
        check_told(self._config, [*self._coming, device])
        self._coming.append(device)
        try:
            id_ = await self._ask("add", self._added, within=timeout, kind=kind, device=state, timeout=[timeout])
        finally:
            self._coming.remove(device)
        return id_

    async def remove(self, id_: str, *, timeout: float | None = 30.0, force: bool = False) -> None:
        """See VM.remove."""
        check_seconds(timeout, "remove(timeout=)")
        await self._ask("remove", self._tell_config, within=timeout, device=id_, timeout=[timeout], force=force)

    async def resize(
        self,
        *,
        cpus: int | None = None,
        memory: int | None = None,
        zone: str | None = None,
        timeout: float | None = 60.0,
    ) -> None:
        """See VM.resize."""
        if cpus is None and memory is None:
            raise UsageError("resize() takes cpus=, memory= in bytes, or both")
        check_seconds(timeout, "resize(timeout=)")
        sizes: dict[str, Plain] = {"cpus": cpus, "memory": memory, "zone": zone}
        await self._ask("resize", self._tell_config, within=timeout, timeout=[timeout], **sizes)

    # -- what it has done, and is

    @overload
    def stats(self) -> VMStats: ...
    @overload
    def stats(self, *, every: float) -> AsyncIterator[VMStats]: ...
    def stats(self, *, every: float | None = None) -> VMStats | AsyncIterator[VMStats]:
        """See VM.stats, with `every`: the first comes as soon as the worker answers. The loop in them is the worker's."""
        self._home.check_thread()
        if every is None:
            self._refuse("stats() at once", "`async for now in vm.stats(every=1.0)`, whose first comes straight away")
        return self._stats_every(every)

    async def _stats_every(self, seconds: float) -> AsyncIterator[VMStats]:
        check_seconds(seconds, "stats(every=)")
        try:
            while not self._ending.stopped.is_set():
                yield await self._look("stats", self._numbers, within=0)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.stopped.wait(), seconds)
            yield await self._look("stats", self._numbers, within=0)
        except WorkerLost:  # it has ended with its worker
            return
        except StateError:
            if not self._left_it:  # or its pool has taken it back meanwhile
                raise

    def _numbers(self, fields: Fields) -> VMStats:
        stats = stats_of(fields.state("stats"))
        if stats.vm != self.name:
            raise SnapshotError(f"the numbers are of {stats.vm!r}, not of {self.name!r}")
        return stats

    @property
    def memory(self) -> Ram:
        """See VM.memory."""
        return _RemoteRam(self.name, self._count)

    async def _count(self, what: str) -> list[int]:
        return await self._look(
            "memory", partial(_bytes, ("bytes", "own") if what == "both" else ("bytes",)), what=what
        )

    async def snapshot(
        self, path: os.PathLike[str] | str, *, base: os.PathLike[str] | str | None = None, track: bool = False
    ) -> Snapshot:
        """See VM.snapshot. The worker writes it: if that is confined to paths, one of its rules has to name this one."""
        from aiovmm.snapshot.taking import Snapshot, path_of

        where, over = path_of(path), None if base is None else path_of(base)
        fields: dict[str, Plain] = {"path": os.fspath(where.absolute()), "track": track}
        fields["base"] = None if over is None else os.fspath(over.absolute())
        pages, standstill = await self._ask("snapshot", _snapshot, **fields)
        return Snapshot(where, pages, standstill, over)

    def _added(self, fields: Fields) -> str:
        self._tell_config(fields)
        ids = {id_ for several in device_ids(self._config).values() for id_ in several}
        return fields.text("id", among=sorted(ids))

    def _tell_config(self, fields: Fields) -> None:
        """What the guest is made of by now. Not later than it is heard: what is heard next may be of a device that came, or
        went, whose caller has given up since."""
        self._config = self._told_config(fields)

    def _told_config(self, fields: Fields) -> VMConfig:
        return config_of(self._config, self._coming, fields.state("config"))

    async def _ask(self, op: str, read: Callable[[Fields], T], *, within: float | None = None, **fields: Plain) -> T:
        """What `read` makes of the answer. A worker that has none `PATIENCE` after `within` seconds is killed: that limit is kept
        there, by one that may be a guest's. Raises what it failed with, WorkerLost, StateError once it was given back."""
        self._home.check()
        if self._left_it:
            raise StateError(self._not_there())
        found: list[T] = []
        with self._worker.patience(op, within):
            await self._worker.ask(
                op, self._number, heard=lambda answer: found.append(read(Fields(answer, op))), **fields
            )
        return found[0]

    async def _look(self, op: str, read: Callable[[Fields], T], *, within: float | None = None, **fields: Plain) -> T:
        """What it tells of itself. Nothing is named there that may not be: a KeyError is a refusal like any other, and who asks
        for numbers of many may take those of our own for the faults that they are. Raises what `_ask` does."""
        try:
            return await self._ask(op, read, within=within, **fields)
        except KeyError as exc:
            raise PeerError(f"the worker of VM {self.name!r} refused to tell its {op}: {exc}") from exc

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """An answer that is none of this request is as bad as a frame that is none."""
        try:
            yield
        except SnapshotError as exc:
            self._worker.give_up(why := f"broke the protocol: {exc}")
            raise WorkerLost(f"the worker of VM {self.name!r} {why}") from None

    def _refuse(self, what: str, instead: str) -> NoReturn:
        raise StateError(f"VM {self.name!r} runs in a worker process, where {what} cannot be had: {instead}")


def _bytes(names: Sequence[str], fields: Fields) -> list[int]:
    return [fields.number(name) for name in names]


def _snapshot(fields: Fields) -> tuple[int, float]:
    return fields.number("pages"), fields.number("microseconds") / 1e6


class _RemoteRam(Ram):
    """See Ram: the pages are counted where they are."""

    def __init__(self, name: str, count: Callable[[str], Awaitable[list[int]]]) -> None:
        def none() -> NoReturn:
            raise StateError(f"the memory of VM {name!r} is in a worker process")

        super().__init__(name, none)
        self._count = count

    async def resident(self) -> int:
        """See Ram."""
        return (await self._count("resident"))[0]

    async def own(self) -> int:
        """See Ram."""
        return (await self._count("own"))[0]

    async def both(self) -> tuple[int, int]:
        """See Ram."""
        resident, own = await self._count("both")
        return resident, own

    async def reclaim(self) -> int:
        """See Ram."""
        return (await self._count("reclaim"))[0]
