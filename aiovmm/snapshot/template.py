"""A guest that has stopped for good, and those that go on from where it stood."""

from __future__ import annotations

import importlib
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from aiovmm.config import NetConfig, VMConfig
from aiovmm.errors import StateError
from aiovmm.lifecycle import ExitReason, ExitStatus
from aiovmm.machine.ending import failed, of_host
from aiovmm.machine.restored import Restored
from aiovmm.memory import GuestMemory
from aiovmm.runtime.plain import State, kept
from aiovmm.runtime.tasks import finish, in_thread, opened_in_thread
from aiovmm.snapshot.base import Base, base_of
from aiovmm.snapshot.configuration import changed, named
from aiovmm.snapshot.disks import DiskBases
from aiovmm.snapshot.forking import Disks, fork_changes, without_places
from aiovmm.snapshot.pages import Copying
from aiovmm.snapshot.restoring import Source, bound_of, going_on, open_source, receive_source
from aiovmm.snapshot.taking import at_rest, machine_of, path_of, reading, state_of

if TYPE_CHECKING:
    from aiovmm.devices.port import PortDevice
    from aiovmm.pool import Pool
    from aiovmm.snapshot.received import Pages
    from aiovmm.virtqueue.device import VirtioDevice
    from aiovmm.vm import VM

__all__ = ["Template", "freeze"]


class Template:
    """What `VM.freeze` gives: guests are forked from it, any number and at any time, until `close`. Those that are there live on
    after that, and its memory goes with the last of them."""

    def __init__(self, make: Callable[..., VM], config: VMConfig, state: State, base: Base, disks: DiskBases) -> None:
        self._make = make
        self._config = config
        self._base = base
        self._restored = Restored(kept(state), base.map)
        self._count = self._forks = 0
        self._alike: VMConfig | None = None  # of forks, but for their names
        self._disks = disks
        self._release = weakref.finalize(self, _release, base, disks)

    @classmethod
    async def open(
        cls,
        path: os.PathLike[str] | str,
        *,
        pages: Pages | None = None,
        within: os.PathLike[str] | str | None = None,
    ) -> Self:
        """The template that a snapshot is: its memory stays the file, which nobody may write to any more, or comes from `pages`
        (see VM.restore), to be kept once for all forks. `within` bounds what it names, as that of VM.restore does, but for places
        of consoles and vsock, which forks do not have. Raises SnapshotError, HostError, ImageError for a disk that is not as it
        was."""
        kind: type[VM] = importlib.import_module("aiovmm.vm").VM  # which makes templates
        where = path_of(path)
        label = f"template {where.name}"
        bound = None if within is None else await in_thread(f"{label}: look at bound", bound_of, path_of(within))
        if pages is None:
            source = await opened_in_thread(f"{label}: open", Source.close, open_source, where, bound)
        else:
            source = await receive_source(label, where, pages)
        try:
            if bound is not None:
                forks = source.config.with_changes(without_places(source.config))
                await in_thread(f"{label}: look at what it names", bound.check, where, source.config, forks)
            name = f"{label}: open disks"
            disks = await opened_in_thread(name, DiskBases.release, DiskBases.opened, source.config)
            try:
                base = await _common(source.base, where)
            except BaseException:
                await in_thread(name, disks.release)
                raise
        except BaseException:
            await in_thread(f"{label}: close", source.close)
            raise
        return cls(kind, source.config, source.state, base, disks)

    def __repr__(self) -> str:
        return f"<Template {self.name!r} {'open' if self._release.alive else 'closed'}: {self.forks} forks>"

    @property
    def name(self) -> str:
        """Of the guest that it was."""
        return self._config.name

    @property
    def config(self) -> VMConfig:
        """What the guest was made of."""
        return self._config

    @property
    def forks(self) -> int:
        """How many there are now."""
        return self._forks

    def close(self) -> None:
        """No further forks. Idempotent. If there are none, the memory goes, which takes 0.2 s a GiB: at the end of `async with` a
        thread does that."""
        self._release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await in_thread(f"template {self.name}: close", self.close)

    @asynccontextmanager
    async def fork(
        self,
        name: str | None = None,
        *,
        vsock_cid: int | None = None,
        disks: Disks = "overlay",
        nets: Sequence[NetConfig] | None = None,
        overrides: Mapping[str, Any] | None = None,
        devices: Sequence[VirtioDevice] = (),
        ports: Sequence[PortDevice] = (),
    ) -> AsyncIterator[VM]:
        """A guest of its own, paused where the template stood: `async with template.fork() as child: await child.resume()`.

        `vsock_cid` is its address for sockets. `disks`: "overlay" gives each disk that is not read-only an overlay of its own,
        which goes with the fork; a list of DiskConfig says where each is. `nets` are its network devices; `overrides` other
        fields of its VMConfig. `devices` and `ports` are the program's own, of the kinds that the template had. Consoles are the
        program's streams, unless `overrides` says where they go. Raises StateError once it is closed, SnapshotError, ConfigError,
        HostError.
        """
        if not self._release.alive:
            raise StateError(f"template {self.name!r} is closed")
        self._count += 1
        given = {"name": f"{self.name}-{self._count}" if name is None else name}
        if overrides is not None:
            from aiovmm.runtime.arguments import a_mapping  # for who gives some

            given |= a_mapping(overrides, "overrides", '{"serial": ConsoleConfig()}')
        self._forks += 1
        try:
            async with AsyncExitStack() as stack:
                with self._held() as bases:
                    config = self._fork_config(given, vsock_cid, disks, nets)
                    vm = going_on(self._make, config, self._restored, devices, ports)
                    if disks == "overlay":
                        vm._power.images = bases.overlays()
                    await stack.enter_async_context(vm)
                yield vm
        finally:
            self._forks -= 1

    def _fork_config(
        self, given: Mapping[str, Any], vsock_cid: int | None, disks: Disks, nets: Sequence[NetConfig] | None
    ) -> VMConfig:
        """Of those that differ from each other by their names alone all but that is checked once."""
        if vsock_cid is not None or nets is not None or disks != "overlay" or len(given) > 1:
            return changed(self._config, fork_changes(self._config, given, vsock_cid, disks, nets))
        if self._alike is None:
            self._alike = changed(self._config, fork_changes(self._config, {}, None, disks, None))
        return named(self._alike, given["name"])

    @contextmanager
    def _held(self) -> Iterator[DiskBases]:
        """Memory and disks are there, though the template may be closed meanwhile. A guest that was made has them itself: what it
        has last a thread gives back."""
        bases = self._disks.hold()
        self._base.use()
        try:
            yield bases
        finally:
            bases.release()
            self._base.release()

    def pool(
        self,
        *,
        warm: int = 0,
        max: int = 1000,
        starting: int | None = None,
        ready: Callable[[VM], Awaitable[object]] | None = None,
        name: str | None = None,
        **fork: Any,
    ) -> Pool:
        """A Pool of forks that run. `fork` are arguments of `fork`; see Pool for the others."""

        @asynccontextmanager
        async def running(name: str) -> AsyncIterator[VM]:
            async with self.fork(name, **fork) as vm:
                await vm.resume()
                yield vm

        pools = importlib.import_module("aiovmm.pool")  # which makes VMs, and we are made by one
        pool: Pool = pools.Pool(running, warm=warm, max=max, starting=starting, ready=ready, name=name or self.name)
        return pool


async def _common(base: Base, where: Path) -> Base:
    """Of which all forks have the pages in common: increments would be read by each. Another takes the place of `base`."""
    if not base.increments:
        return base
    flat = await opened_in_thread(f"template {where.name}: read memory", Base.release, base.flat)
    base.release()
    return flat


def _release(base: Base, disks: DiskBases) -> None:
    disks.release()
    base.release()


async def _frozen(vm: VM, memory: GuestMemory) -> Base:
    copying = Copying()
    with reading(vm, copying):
        return await opened_in_thread(f"{vm.name}: freeze memory", Base.release, base_of, memory, copying)


async def freeze(vm: VM) -> Template:
    """See VM.freeze."""
    from aiovmm.snapshot.present import config_of  # not for who opens a snapshot

    vm._home.check()
    async with AsyncExitStack() as given_up:
        async with vm._transition:
            machine = machine_of(vm)
            async with at_rest(vm, machine, for_good=True):
                state, config = await state_of(vm, machine), config_of(vm)
            base, disks = await _kept_of(vm, machine.memory)
            template = Template(vm._maker(), config, state["machine"], base, disks)
            await given_up.enter_async_context(template)
            status = ExitStatus(ExitReason.KILLED, "it was frozen into a template")
            await finish(vm._ending.end(status))  # before anybody else has a guest without memory
        await finish(vm._close(status))
        given_up.pop_all()
    return template


async def _kept_of(vm: VM, memory: GuestMemory) -> tuple[Base, DiskBases]:
    """What its forks have in common. If that cannot be had, the guest has ended."""
    try:
        disks = await DiskBases.frozen(list(vm._power.plugged))
        try:
            return await _frozen(vm, memory), disks
        except BaseException:
            await in_thread(f"{vm.name}: close disks", disks.release)
            raise
    except BaseException as exc:
        error = of_host("freezing", vm.name, exc)
        await finish(vm._ending.end(failed("it could not be frozen, and its memory is lost", error)))
        if error is exc:
            raise
        raise error from exc
