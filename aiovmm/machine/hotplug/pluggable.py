"""What comes and goes: virtio devices, and devices of the host. The same steps for each, which `hotplug.devices` puts in order.

open ──► put_in ──► (in a slot of the machine, and one of the VM's parts) ──► take_out ──► forget ──► close
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from aiovmm.config import DeviceConfig, DiskConfig, PlacedConfig
from aiovmm.errors import ConfigError, UsageError
from aiovmm.machine.device_memory import map_later, unmap
from aiovmm.machine.devices import join_console, look_at_images, make_device
from aiovmm.machine.parts import MachineParts, PluggedDevice
from aiovmm.runtime.tasks import finish, in_thread

if TYPE_CHECKING:
    from aiovmm.machine.assembly import Machine
    from aiovmm.machine.ending import Ending
    from aiovmm.machine.passthrough import HostPlace
    from aiovmm.pci.root import PciAddress

__all__ = ["Pluggable", "find", "ids", "made"]

_IOMMU = 23  # VIRTIO 1.2 §5


class Pluggable(Protocol):
    """One device."""

    @property
    def id(self) -> str:
        """What it is called."""

    @property
    def of_host(self) -> bool:
        """Whether it is a device of the host, which nobody else can have until it is closed."""

    @property
    def awaits_peer(self) -> bool:
        """Whether another program has to let it be opened, which may take as long as it likes."""

    def check_fits(self, machine: Machine) -> None:
        """Raises ConfigError for what the machine would have had to be made for, UsageError where it has no place for it."""

    async def open(self) -> None:
        """Acquire what it needs of the host, to be given back by `close`, also if this fails. Raises HostError, ConfigError."""

    async def put_in(self, parts: MachineParts, machine: Machine) -> None:
        """It is in a slot, and one of the parts; or nothing of that. Raises HostError, ConfigError, UsageError."""

    def is_in(self, parts: MachineParts) -> bool:
        """Whether it is one of them."""

    async def take_out(self, machine: Machine) -> None:
        """Out of its slot: nothing of it touches memory any more. Raises HostError."""

    def forget(self, parts: MachineParts) -> None:
        """It is none of them any more."""

    async def close(self, parts: MachineParts | None = None, why: str = "") -> None:
        """Give back what it has of the host. `why`: it was there, and was removed."""


class _Virtio:
    """A virtio device."""

    of_host = False

    def __init__(self, plugged: PluggedDevice) -> None:
        self._plugged = plugged
        self._device = plugged.device
        self.id = plugged.id
        self.awaits_peer = plugged.device._awaits_peer

    def check_fits(self, machine: Machine) -> None:
        if self._device.shares_memory and not all(region.shared for region in machine.memory.regions if region.ram):
            hint = "make the VM with MemoryConfig(shared=True)"
            raise ConfigError(
                "memory.shared", f"is off, and {self.id!r} shares the guest's memory with another process", hint
            )
        _check_behind(machine, self._plugged)

    async def open(self) -> None:
        await self._device.open()

    async def put_in(self, parts: MachineParts, machine: Machine) -> None:
        await map_later(machine, self._plugged)
        address = await self._in_its_slot(machine)
        self._plugged = replace(self._plugged, segment=address.segment, slot=address.slot)
        parts.plugged.append(self._plugged)
        join_console(parts, self._device)

    async def _in_its_slot(self, machine: Machine) -> PciAddress:
        try:
            return machine.devices.plug(self._plugged)
        except BaseException:
            await finish(unmap(machine, self._plugged))
            raise

    def is_in(self, parts: MachineParts) -> bool:
        return any(p.device is self._device for p in parts.plugged)

    async def take_out(self, machine: Machine) -> None:
        await machine.devices.unplug(self.id)
        await unmap(machine, self._plugged)

    def forget(self, parts: MachineParts) -> None:
        parts.plugged = [p for p in parts.plugged if p.device is not self._device]

    async def close(self, parts: MachineParts | None = None, why: str = "") -> None:
        if parts is not None:
            parts.console.disconnect(self._device)
        if why:
            self._device.guest_ended(why)
        await self._device.close()


class _Host:
    """A device of the host: one of `Passthrough.places`, while it is in."""

    awaits_peer, of_host = False, True

    def __init__(self, place: HostPlace, parts: MachineParts) -> None:
        assert parts.passthrough is not None
        self._place = place
        self._device = place.device
        self._passthrough = parts.passthrough
        self._memory_size = parts.config.lockable_ram
        self.id = place.id

    def check_fits(self, machine: Machine) -> None:
        _check_behind(machine, self._place)
        machine.pci.root.free_place(self._place.segment, self._place.slot)

    async def open(self) -> None:
        await in_thread(self._thread, self._passthrough.open_one, self._place, self._memory_size)

    async def put_in(self, parts: MachineParts, machine: Machine) -> None:
        address = await machine.devices.plug_host(self._place)
        self._place = replace(self._place, slot=address.slot)
        self._passthrough.places.append(self._place)

    def is_in(self, parts: MachineParts) -> bool:
        return any(place.device is self._device for place in parts.hosts)

    async def take_out(self, machine: Machine) -> None:
        await machine.devices.unplug(self.id)

    def forget(self, parts: MachineParts) -> None:
        self._passthrough.places = [p for p in self._passthrough.places if p.device is not self._device]

    async def close(self, parts: MachineParts | None = None, why: str = "") -> None:
        await in_thread(self._thread, self._passthrough.close_one, self._place)  # its kernel side resets it

    @property
    def _thread(self) -> str:
        return f"{self._device.label} vfio"


async def made(parts: MachineParts, placed: PlacedConfig, ending: Ending) -> Pluggable:
    """What a configuration that has an id says, not open yet. Raises ConfigError, HostError."""
    assert placed.id is not None
    if isinstance(placed, DeviceConfig):
        from aiovmm.machine.passthrough import Passthrough  # for guests that have some

        parts.passthrough = parts.passthrough or Passthrough(parts.config)
        return _Host(parts.passthrough.place(placed.id, placed, parts.config), parts)
    name = parts.config.name
    kinds = await look_at_images(name, {placed.id: placed} if isinstance(placed, DiskConfig) else {})
    device = make_device(parts, placed, placed.id, kinds)
    device._account = parts.account
    device._label = f"{name}: {placed.id}"
    device._notify_error = partial(ending.device_failed, placed.id)
    device._notify_driver = partial(ending.device_driven, placed.id)
    return _Virtio(PluggedDevice(placed.id, device, placed.pci_segment, placed.iommu, placed.pci_device_id))


def find(parts: MachineParts, id_: str) -> Pluggable:
    """One that is there, and can go. Raises KeyError, UsageError."""
    for place in parts.hosts:
        if place.id == id_:
            return _Host(place, parts)
    for plugged in parts.plugged:
        if plugged.id == id_:
            if plugged.device.device_id == _IOMMU:
                raise UsageError("the IOMMU stands between other devices and memory, and stays")
            return _Virtio(plugged)
    known = ", ".join(sorted(ids(parts)))
    there = f"there are: {known}" if known else "there are none"
    raise KeyError(f"VM {parts.config.name!r} has no device {id_!r}; {there}")


def ids(parts: MachineParts) -> set[str]:
    """Of all that are there."""
    return {p.id for p in parts.plugged} | {place.id for place in parts.hosts}


def _check_behind(machine: Machine, wanted: PluggedDevice | HostPlace) -> None:
    iommu = machine.devices.iommu
    if wanted.iommu and (iommu is None or not iommu.takes_later(wanted.segment)):
        hint = "put it into a segment of PlatformConfig(iommu_segments=)"
        raise ConfigError(f"{wanted.id}.iommu", "a guest learns at its start what is behind the IOMMU", hint)
