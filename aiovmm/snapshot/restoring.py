"""VMs that go on where another one stood."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aiovmm.architecture import host
from aiovmm.config import VMConfig
from aiovmm.errors import SnapshotError
from aiovmm.machine.restored import Restored
from aiovmm.memory import GuestMemory
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import State
from aiovmm.runtime.tasks import in_thread, opened_in_thread
from aiovmm.snapshot.base import Base
from aiovmm.snapshot.chain import open_chain
from aiovmm.snapshot.configuration import changed, from_state
from aiovmm.snapshot.pages import Kept, sum_up
from aiovmm.snapshot.received import Pages, received

if TYPE_CHECKING:
    from aiovmm.devices.port import PortDevice
    from aiovmm.snapshot.within import Within
    from aiovmm.virtqueue.device import VirtioDevice
    from aiovmm.vm import VM

__all__ = ["Source", "bound_of", "going_on", "open_source", "receive_source", "restored"]

V = TypeVar("V", bound="VM")


@dataclass(eq=False)
class Source:
    """A snapshot that was opened: the guest's configuration, and what VMs go on from. `close` when there are to be no more of
    them; those that are there keep what they need."""

    config: VMConfig
    state: State
    base: Base
    places: list[Path]
    kept: Kept
    closed: bool = False

    def close(self) -> None:
        """Idempotent."""
        if not self.closed:
            self.closed = True
            self.base.release()

    def vm(
        self,
        cls: type[V],
        config: VMConfig,
        devices: Sequence[VirtioDevice] = (),
        ports: Sequence[PortDevice] = (),
        *,
        prefault: bool = False,
        last: bool = False,
    ) -> V:
        """A VM that stands, paused, where the snapshot was taken, once it is entered. After the `last` there are no more of them:
        this is closed then, when that has its memory."""
        map_memory = partial(self._map_last if last else self.base.map, prefault=prefault)
        return going_on(cls, config, Restored(self.state, map_memory), devices, ports)

    def _map_last(self, ram: list[tuple[int, int]], *, prefault: bool) -> GuestMemory:
        try:
            return self.base.map(ram, prefault=prefault)
        finally:
            self.close()

    def verify(self) -> None:
        """Read all of the memory. In a thread. Raises SnapshotError if it is not what was saved."""
        whole = GuestMemory.copy_on_write([(0, self.config.mapped_ram)], self.base.fd)
        try:
            right = [*(increment.verify() for increment in self.base.increments), sum_up(whole) == self.kept]
        finally:
            whole.close()
        for place, is_right in zip(self.places, right, strict=True):
            if not is_right:
                raise SnapshotError(f"{place}: its memory is not what was saved: the file is damaged")


def open_source(path: Path, within: Within | None = None) -> Source:
    """The snapshot at `path`. In a thread. Raises SnapshotError for what is none, or of another architecture, HostError."""
    chain = open_chain(path) if within is None else open_chain(path, within.allows)
    base = Base(chain.whole, chain.increments, chain.identity)
    return _source(chain.state, base, chain.places, chain.kept)


async def receive_source(name: str, path: Path, pages: Pages) -> Source:
    """The snapshot at `path`, with its memory from `pages`. Raises what `open_source` does, and whatever `pages` raises."""
    opened, base = await received(name, path, pages)
    kept = Kept(opened.pages, opened.sum)
    return await opened_in_thread(f"{name}: open snapshot", Source.close, _source, opened.state, base, [path], kept)


def _source(state: State, base: Base, places: list[Path], kept: Kept) -> Source:
    """It has `base` then, which is released if this fails. Raises SnapshotError."""
    path = places[0]
    try:
        there, here = state["architecture"], host().name
        if there != here:
            raise SnapshotError(f"{path}: it is of a guest for {there}, and this host is {here}")
        config = from_state(state["config"])
        if (size := os.fstat(base.fd).st_size) != config.mapped_ram:
            raise SnapshotError(f"{path}: it has {size} bytes of memory, and its config {config.mapped_ram}")
        return Source(config, state["machine"], base, places, kept)
    except BaseException:
        base.release()
        raise


def bound_of(within: Path) -> Within:
    """Of what a snapshot may name. In a thread. Raises ConfigError."""
    from aiovmm.snapshot.within import Within  # for who restores what others have made

    return Within(within)


@asynccontextmanager
async def restored(
    cls: type[V],
    path: Path,
    *,
    name: str | None,
    overrides: Mapping[str, Any],
    devices: Sequence[VirtioDevice],
    ports: Sequence[PortDevice],
    prefault: bool,
    verify: bool,
    pages: Pages | None,
    within: Path | None,
) -> AsyncIterator[V]:
    """See VM.restore."""
    label = name or "restored"
    bound = None if within is None else await in_thread(f"{label}: look at bound", bound_of, within)
    if pages is None:
        source = await opened_in_thread(f"{label}: open snapshot", Source.close, open_source, path, bound)
    else:
        source = await receive_source(label, path, pages)
    try:
        config = changed(source.config, {**({} if name is None else {"name": name}), **overrides})
        if bound is not None:
            await in_thread(f"{label}: look at what it names", bound.check, path, source.config, config)
        if verify and pages is None:
            await in_thread(f"{label}: verify snapshot", source.verify)
        async with source.vm(cls, config, devices, ports, prefault=prefault, last=True) as vm:
            yield vm
    finally:
        if not source.closed:  # it never had its memory, which it gives back itself
            await in_thread(f"{label}: close snapshot", source.close)


def going_on(
    make: Callable[..., V],
    config: VMConfig,
    restored: Restored,
    devices: Sequence[VirtioDevice] = (),
    ports: Sequence[PortDevice] = (),
) -> V:
    """A VM that stands, paused, where `restored` was saved, once it is entered."""
    vm = make(config, devices=devices, ports=ports, terminal=False)
    vm._power.restored = restored
    return vm
