"""Devices that bring memory of their own (pmem): mapped above RAM, like RAM a slot of KVM's, but in no memory map.

Their places depend only on the configuration, so a guest finds them where they were after a reboot. What comes while it runs
lies in the 64-bit window of its PCI segment, until the guest is reset.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeGuard, runtime_checkable

from aiovmm.errors import ConfigError, SnapshotError
from aiovmm.machine.parts import PluggedDevice
from aiovmm.memory import GuestMemory
from aiovmm.runtime.tasks import finish

__all__ = [
    "DeviceMemory",
    "MemoryDevice",
    "has_device_memory",
    "map_device_memory",
    "map_later",
    "refuse_moved",
    "unmap",
]

if TYPE_CHECKING:
    from aiovmm.machine.assembly import Machine

_MOVED = "a machine that is made anew has something else there; there is a snapshot once the guest was reset"
_FIRST_ALIGNMENT = 1 << 30  # keeps it out of the last memory sections (128 MiB) that RAM has in Linux


class DeviceMemory(Protocol):
    """`size` bytes from the start of file `fd`; `shared`: what the guest writes goes to the file."""

    fd: int
    size: int
    shared: bool


@runtime_checkable
class MemoryDevice(Protocol):
    """A device that is to be mapped into guest-physical space whenever a machine is built."""

    memory_alignment: int

    def memory(self) -> DeviceMemory:
        """What to map. The file stays the device's. Raises ConfigError, HostError."""

    def placed(self, address: int) -> None:
        """Where it was mapped."""


def _has_memory(device: object) -> TypeGuard[MemoryDevice]:
    """To ask `isinstance` takes as long as to map it."""
    return hasattr(device, "memory_alignment")


def has_device_memory(plugged: Iterable[PluggedDevice]) -> bool:
    """Whether any of them brings some."""
    return any(_has_memory(p.device) for p in plugged)


def map_device_memory(memory: GuestMemory, plugged: Iterable[PluggedDevice], start: int, limit: int) -> int:
    """Map the memory of all devices that have some, from the first aligned address after `start`; the end of the last (or
    `start`). Raises ConfigError for what does not lie below `limit`, HostError."""
    end = start
    for p, device, piece, address in _places(plugged, start):
        if address + piece.size > limit:
            raise ConfigError(
                f"{p.id}.size",
                f"{piece.size} bytes do not fit in this processor's {limit.bit_length() - 1} address bits",
            )
        memory.map_fd(address, piece.size, piece.fd, shared=piece.shared)
        device.placed(address)
        end = address + piece.size
    return end


def _places(
    plugged: Iterable[PluggedDevice], start: int
) -> Iterator[tuple[PluggedDevice, MemoryDevice, DeviceMemory, int]]:
    """Each device that has memory, what that is, and where it goes."""
    end = start
    for p in plugged:
        if _has_memory(p.device):
            piece = p.device.memory()
            alignment = _FIRST_ALIGNMENT if end == start else p.device.memory_alignment
            address = -(-end // alignment) * alignment
            yield p, p.device, piece, address
            end = address + piece.size


def refuse_moved(machine: Machine) -> None:
    """Raises SnapshotError if a machine that is made of the configuration as it is now has such memory, or what lies behind it,
    elsewhere than this one: some came, or went, while the guest ran."""
    there = {(region.gpa, region.fd) for region in machine.memory.regions}
    end = machine.end_of_ram
    for p, _, piece, address in _places(machine.parts.plugged, end):
        if (address, piece.fd) not in there:
            raise SnapshotError(f"{p.id} cannot be in a snapshot: {_MOVED}")
        end = address + piece.size
    if end != machine.end_of_memory:
        raise SnapshotError(f"persistent memory of this guest has gone: {_MOVED}")


async def map_later(machine: Machine, plugged: PluggedDevice) -> None:
    """The same for a device that comes while the guest runs; nothing for one without memory. Raises ConfigError, HostError,
    UsageError; then nothing is mapped."""
    device = plugged.device
    if not _has_memory(device):
        return
    piece, segment = device.memory(), machine.pci.root.segments[plugged.segment]
    address = segment.aperture.lend(piece.size, device.memory_alignment)
    try:
        region = machine.memory.map_fd(address, piece.size, piece.fd, shared=piece.shared)
        device.placed(address)
        await _tell_kvm(machine)
        await machine.devices.memory_came(region)
    except BaseException:
        await finish(unmap(machine, plugged))  # also for who is cancelled a second time meanwhile
        segment.aperture.give_back(address)
        raise


async def unmap(machine: Machine, plugged: PluggedDevice) -> None:
    """The memory of a device that goes, and is open still: no part of it is the guest's any more, nor mapped here. Where it was
    nothing else of the process comes to be as long as the machine is there: another device may have something under way to it."""
    device = plugged.device
    if not _has_memory(device):
        return
    fd = device.memory().fd
    for region in [region for region in machine.memory.regions if region.fd == fd and not region.ram]:
        machine.memory.retire(region)
        await _tell_kvm(machine)
        await machine.devices.memory_gone(region)
        await machine.worker.submit(partial(machine.memory.blank, region))
        machine.pci.root.segments[plugged.segment].aperture.give_back(region.gpa)


async def _tell_kvm(machine: Machine) -> None:
    await machine.worker.submit(lambda: machine.kvm_vm.set_memory(machine.memory))
