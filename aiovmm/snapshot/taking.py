"""A VM stands still, and what it is is taken down: to a directory, or as the base of others."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aiovmm.architecture import host
from aiovmm.errors import ConfigError, SnapshotError, StateError
from aiovmm.lifecycle import VMState
from aiovmm.machine.standstill import save, suspend, unsuspend
from aiovmm.memory import GuestMemory
from aiovmm.runtime.dataclass import dataclass, replace
from aiovmm.runtime.plain import State
from aiovmm.runtime.tasks import finish, in_thread
from aiovmm.snapshot.chain import base_at
from aiovmm.snapshot.configuration import to_state
from aiovmm.snapshot.directory import BaseOf, Written
from aiovmm.snapshot.dirty import DirtyPages
from aiovmm.snapshot.increment import Writer
from aiovmm.snapshot.pages import Kept, keep, ram_of

if TYPE_CHECKING:
    from aiovmm.config import VMConfig
    from aiovmm.machine import Machine
    from aiovmm.virtqueue.device import VirtioDevice
    from aiovmm.vm import VM

__all__ = ["Snapshot", "at_rest", "config_of", "machine_of", "path_of", "state_of", "take"]


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
    name = vm.name
    vm._home.check()
    async with vm._transition:
        machine = machine_of(vm)
        _refuse_fleeting([plugged.device for plugged in vm._power.plugged])
        size = vm.config.mapped_ram
        over = None if base is None else await in_thread(f"{name}: look at base", base_at, base, path, size)
        saved = SavedMemory(machine.memory, over, track=track)
        written = Written(path, size, over)
        try:
            saved.check(base)
            await in_thread(f"{name}: begin snapshot", written.open)
            await in_thread(f"{name}: look at memory", saved.begin, written.memory)
            began = time.monotonic()
            async with at_rest(vm, machine):
                state = await state_of(vm, machine)
                await in_thread(f"{name}: save memory", saved.take)
            standstill = time.monotonic() - began
            await _sync([plugged.device for plugged in vm._power.plugged])
            kept, maps = await in_thread(f"{name}: write memory", saved.finish)
            identity = await in_thread(f"{name}: write snapshot", written.commit, state, kept.pages, kept.sum, maps)
            saved.taken(identity)
        finally:
            saved.close()
            await in_thread(f"{name}: end snapshot", written.close)
    return Snapshot(path, kept.pages, standstill, base)


class SavedMemory:
    """A guest's memory goes into a file: what was written since the snapshot `over`, or all; with `track`, so that what is
    written from then on is known. `begin`, `take` while the guest stands still, and `finish` are called in a thread, and raise
    SnapshotError, HostError."""

    def __init__(self, memory: GuestMemory, over: BaseOf | None, *, track: bool) -> None:
        self._memory = memory
        self._over = over
        self._out = -1
        self._writer: Writer | None = None
        self._kept = Kept(0, 0)
        self._dirty = DirtyPages.of(memory) if track or over is not None else None

    def check(self, base: Path | None) -> None:
        """Raises SnapshotError for a base since which it is not known what was written."""
        if self._over is not None and self._dirty is not None:
            self._dirty.refuse_unknown(self._over.identity, base)

    def begin(self, out: int) -> None:
        """What can be done while the guest runs, for the file `out`."""
        self._out = out
        if self._over is not None and self._dirty is not None:
            self._writer = Writer(out, self._dirty.expected())

    def take(self) -> None:
        """What it is now."""
        if self._dirty is not None:
            changed = self._dirty.written(self._memory, self._over.identity if self._over else "")
        if self._writer is not None:
            self._writer.take(self._memory, changed)
        else:
            self._kept = keep(self._memory, self._out)

    def finish(self) -> tuple[Kept, str]:
        """What the file has, and an increment's sum of maps."""
        return (self._kept, "") if self._writer is None else self._writer.finish()

    def taken(self, identity: str) -> None:
        """It is a snapshot's for good."""
        if self._dirty is not None:
            self._dirty.taken(identity)

    def close(self) -> None:
        """In any case."""
        if self._writer is not None:
            self._writer.close()


def _refuse_fleeting(devices: Sequence[VirtioDevice]) -> None:
    for device in devices:
        if (why := device.why_not_on_disk) is not None:
            raise SnapshotError(f"{device.name} cannot be in a snapshot: {why}")


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
            raise StateError(f"{what} of VM {vm.name!r} come or go: there is a snapshot once resize() has returned")
    return machine


@asynccontextmanager
async def at_rest(vm: VM, machine: Machine, *, for_good: bool = False) -> AsyncIterator[None]:
    """Its guest stands still, its devices have nothing under way; then all goes on as it was, unless that was `for_good`. Raises
    StateError for a guest that has ended by then."""
    running = vm.state is VMState.RUNNING
    if running:
        await machine.pause()
    over = False
    try:
        await suspend(machine)
        try:
            if machine.halted:  # where it stands there is no going on from
                raise StateError(f"VM {vm.name!r} has just ended, or resets itself: there is no snapshot of that")
            yield
            over = for_good
        finally:
            if not over:
                await finish(unsuspend(machine))
    finally:
        if running and not over:
            machine.resume()


async def state_of(vm: VM, machine: Machine) -> State:
    """All but the memory, of a VM that is at rest. Raises SnapshotError, KvmError."""
    return {
        "architecture": host().name,
        "config": to_state(config_of(vm)),
        "machine": await save(machine),
    }


def config_of(vm: VM) -> VMConfig:
    """Its configuration, with what was made up for it and its guest has seen: the addresses of its network devices."""
    config = vm.config
    if all(net.mac is not None for net in config.nets):
        return config
    from aiovmm.config.ids import device_ids
    from aiovmm.devices.virtio.net import NetDevice, format_mac  # it has such a device, and with it this

    ids = device_ids(config)["nets"]
    macs = {plugged.id: plugged.device.mac for plugged in vm._power.plugged if isinstance(plugged.device, NetDevice)}
    nets = zip(config.nets, ids, strict=True)
    return replace(
        config, nets=tuple(replace(net, mac=format_mac(macs[id_])) if id_ in macs else net for net, id_ in nets)
    )
