"""A VM stands still, and what it is is taken down: to a directory, or as the base of others."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aiovmm.architecture import host
from aiovmm.errors import ConfigError, HostError, SnapshotError, StateError
from aiovmm.lifecycle import VMState
from aiovmm.machine.standstill import save, suspend, unsuspend
from aiovmm.memory import GuestMemory
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import State
from aiovmm.runtime.tasks import finish, in_thread, in_thread_unless
from aiovmm.snapshot.chain import base_at
from aiovmm.snapshot.configuration import to_state
from aiovmm.snapshot.directory import BaseOf, Written
from aiovmm.snapshot.dirty import DirtyPages
from aiovmm.snapshot.increment import Writer
from aiovmm.snapshot.pages import Copying, Kept, keep, ram_of

if TYPE_CHECKING:
    from aiovmm.machine import Machine
    from aiovmm.virtqueue.device import VirtioDevice
    from aiovmm.vm import VM

__all__ = ["Snapshot", "at_rest", "machine_of", "path_of", "reading", "state_of", "take"]


@dataclass(frozen=True)
class Snapshot:
    """One that was written: `pages` of 4 KiB that are in it, which are none of zeros, and for how many seconds the guest stood
    still. With a `base` it has only what was written since that was taken, and needs it."""

    path: Path
    pages: int
    standstill: float
    base: Path | None = None


def path_of(path: os.PathLike[str] | str) -> Path:
    """As a Path. Raises ConfigError for what is none."""
    try:
        text = os.fsdecode(path)
    except (TypeError, ValueError) as exc:
        raise ConfigError("path", f"{path!r} is no path of a directory") from exc
    if not text or "\0" in text:  # the former a variable that nobody has set, and not where this process is
        raise ConfigError("path", f"{path!r} is no path of a directory", "'.' is where this process is")
    return Path(text)


async def take(vm: VM, path: Path, *, base: Path | None = None, track: bool = False) -> Snapshot:
    """A snapshot of `vm` at `path`, over the one at `base` or whole. What could not be written leaves the one that was there, and
    the guest goes on. Raises StateError, SnapshotError, HostError."""
    vm._home.check()
    ending = vm._ending
    ending.saving = ending.saving or asyncio.Lock()
    async with ending.saving:
        return await _Taking(vm, path, base, track).take()


class _Taking:
    """One of them. What storage takes its time for is done where nobody waits who would pause, reset or close the VM."""

    def __init__(self, vm: VM, path: Path, base: Path | None, track: bool) -> None:
        self._vm = vm
        self._path = path
        self._base = base
        self._track = track
        self._over: BaseOf | None = None
        self._size = 0

    async def take(self) -> Snapshot:
        """All of it."""
        vm, path, name = self._vm, self._path, self._vm.name
        async with vm._transition:
            _refuse(vm)
            self._size = vm.config.mapped_ram
        if self._base is not None:
            self._over = await in_thread(f"{name}: look at base", base_at, self._base, path, self._size)
            async with vm._transition:
                self._saved_memory()
        written = Written(path, self._size, self._over)
        try:
            await in_thread(f"{name}: begin snapshot", written.open)
            return await self._write(written)
        finally:
            await in_thread(f"{name}: end snapshot", written.close)

    async def _write(self, written: Written) -> Snapshot:
        vm, name = self._vm, self._vm.name
        async with vm._transition:
            saved = self._saved_memory()
            with reading(vm, saved.copying):
                try:
                    state, standstill = await self._at_rest(saved, written)
                except BaseException:
                    saved.close()
                    raise
        try:
            kept, maps = await in_thread(f"{name}: write memory", saved.finish)
            identity = await in_thread(f"{name}: write snapshot", written.commit, state, kept.pages, kept.sum, maps)
            saved.taken(identity)
        finally:
            saved.close()
        return Snapshot(self._path, kept.pages, standstill, self._base)

    async def _at_rest(self, saved: SavedMemory, written: Written) -> tuple[State, float]:
        """The state, and for how long the guest stood still for it and its memory."""
        vm, name = self._vm, self._vm.name
        await in_thread(f"{name}: look at memory", saved.begin, written.memory)
        began = time.monotonic()
        async with at_rest(vm, vm.machine):
            state = await state_of(vm, vm.machine)
            await in_thread_unless(saved.copying.give_up, f"{name}: save memory", saved.take)
        standstill = time.monotonic() - began
        await _sync([plugged.device for plugged in vm._power.plugged])
        return state, standstill

    def _saved_memory(self) -> SavedMemory:
        """Of the machine that there is. Raises StateError, SnapshotError."""
        _refuse(self._vm)
        if self._vm.config.mapped_ram != self._size:
            raise come_or_go(self._vm.name, "memory")
        saved = SavedMemory(self._vm.machine.memory, self._over, track=self._track, place=str(self._path))
        saved.check(self._base)
        return saved


@contextmanager
def reading(vm: VM, copying: Copying) -> Iterator[None]:
    """All of its memory is read meanwhile, unless it is closed: then whoever does gives up. Raises StateError."""
    readers = vm._ending.readers
    readers.append(copying.give_up)
    try:
        yield
    except HostError as exc:
        if exc.errno != errno.ECANCELED:
            raise
        raise StateError(f"VM {vm.name!r} was closed while its memory was copied: there is no snapshot of it") from exc
    finally:
        readers.remove(copying.give_up)


class SavedMemory:
    """A guest's memory goes into a file: what was written since the snapshot `over`, or all; with `track`, so that what is
    written from then on is known. `begin`, `take` while the guest stands still, and `finish` are called in a thread, and raise
    SnapshotError, HostError, which names the `place` that cannot be written."""

    def __init__(self, memory: GuestMemory, over: BaseOf | None, *, track: bool, place: str | None = None) -> None:
        self._memory = memory
        self._over = over
        self._out = -1
        self._writer: Writer | None = None
        self.copying = Copying(place)
        self._dirty = DirtyPages.of(memory) if track or over is not None else None

    def check(self, base: Path | None) -> None:
        """Raises SnapshotError for a base since which it is not known what was written."""
        if self._over is not None and self._dirty is not None:
            self._dirty.refuse_unknown(self._over.identity, base)

    def begin(self, out: int) -> None:
        """What can be done while the guest runs, for the file `out`."""
        self._out = out
        if self._over is not None and self._dirty is not None:
            self._writer = Writer(out, self._dirty.expected(), self.copying)

    def take(self) -> None:
        """What it is now."""
        if self._dirty is not None:
            changed = self._dirty.written(self._memory, self._over.identity if self._over else "")
        if self._writer is not None:
            self._writer.take(self._memory, changed)
        else:
            keep(self._memory, self._out, copying=self.copying)

    def finish(self) -> tuple[Kept, str]:
        """What the file has, and an increment's sum of maps."""
        return (self.copying.kept, "") if self._writer is None else self._writer.finish()

    def taken(self, identity: str) -> None:
        """It is a snapshot's for good."""
        if self._dirty is not None:
            self._dirty.taken(identity)

    def close(self) -> None:
        """In any case."""
        if self._writer is not None:
            self._writer.close()


def _refuse(vm: VM) -> None:
    """Raises StateError, SnapshotError for a VM of which there is no snapshot in a directory."""
    _refuse_halted(vm, machine_of(vm))
    for plugged in vm._power.plugged:
        if (why := plugged.device.why_not_on_disk) is not None:
            raise SnapshotError(f"{plugged.device.name} cannot be in a snapshot: {why}")


async def _sync(devices: Sequence[VirtioDevice]) -> None:
    """All of them at once, or after the host's power fails memory would know more than disks. Begun before the guest can let go
    of one: who closes that waits."""
    for result in await asyncio.gather(*(device.sync() for device in devices), return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def machine_of(vm: VM) -> Machine:
    """Of a VM that can be taken down. Raises StateError, also while memory or processors of its come or go."""
    if vm.state not in (VMState.RUNNING, VMState.PAUSED):
        raise StateError(f"VM {vm.name!r} is {vm.state.value}: there is a snapshot of what runs, or is paused")
    machine = vm.machine
    there = sum(region.size for region in ram_of(machine.memory)), len(machine.vcpus)
    for what, now, then in zip(
        ("memory", "processors"), there, (vm.config.mapped_ram, vm.config.cpus.boot), strict=True
    ):
        if now != then:
            raise come_or_go(vm.name, what)
    return machine


def come_or_go(name: str, what: str) -> StateError:
    """Memory or processors do, of a VM that is to be taken down."""
    return StateError(f"{what} of VM {name!r} come or go: there is a snapshot once resize() has returned")


def _refuse_halted(vm: VM, machine: Machine) -> None:
    """Where it stands there is no going on from."""
    if machine.processors.halted:
        raise StateError(f"VM {vm.name!r} has just ended, or resets itself: there is no snapshot of that")


@asynccontextmanager
async def at_rest(vm: VM, machine: Machine, *, for_good: bool = False) -> AsyncIterator[None]:
    """Its guest stands still, its devices have nothing under way; then all goes on as it was, unless that was `for_good`. Raises
    StateError for a guest that has ended by then."""
    running = vm.state is VMState.RUNNING
    if running:
        await machine.processors.pause()
    over = False
    try:
        await suspend(machine)
        try:
            _refuse_halted(vm, machine)
            yield
            over = for_good
        finally:
            if not over:
                await finish(unsuspend(machine))
    finally:
        if running and not over:
            machine.processors.resume()


async def state_of(vm: VM, machine: Machine) -> State:
    """All but the memory, of a VM that is at rest. Raises SnapshotError, KvmError."""
    from aiovmm.snapshot.present import config_of  # for who saves: whoever restores needs the rest of this file

    return {
        "architecture": host().name,
        "config": to_state(config_of(vm)),
        "machine": await save(machine),
    }
