"""The virtio-iommu of a machine: which devices stand behind it, and what the firmware tables say of that.

A machine where no device asks for it has none: no device, no table, and rings that read guest memory's own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

from aiovmm.boot import pci as firmware
from aiovmm.config import VMConfig
from aiovmm.config.placed import PlacedConfig
from aiovmm.errors import ConfigError, GuestFault
from aiovmm.machine.parts import MachineParts, PluggedDevice
from aiovmm.memory import GuestMemory
from aiovmm.pci.root import PciAddress
from aiovmm.pci.segment import SLOTS

if TYPE_CHECKING:  # imported at run time by machines that have one
    from aiovmm.devices.virtio.iommu import IommuDevice, Translation
    from aiovmm.devices.virtio.iommu.device import Endpoint, Reach

__all__ = ["MachineIommu", "endpoint_id", "machine_iommu", "refuse_remote", "refuse_remote_device", "wants_iommu"]

_IOMMU = 23  # VIRTIO 1.2 §5


class MachineIommu:
    """`device` at work in one machine."""

    def __init__(
        self, device: IommuDevice, memory: GuestMemory, segments: tuple[int, ...], bare: Collection[int] = ()
    ) -> None:
        """`segments` are behind it as a whole, with slot 0 in those that have no bridge there."""
        self._bare = bare
        self.device = device
        self._segments = segments
        self._place: PciAddress | None = None
        self._behind: list[PciAddress] = []
        device.power_on(memory)

    def covers(self, plugged: PluggedDevice) -> bool:
        """Whether the IOMMU stands between this device and memory."""
        return plugged.device is not self.device and (plugged.iommu or plugged.segment in self._segments)

    def takes_later(self, segment: int) -> bool:
        """Whether a device that comes while the guest runs can be behind it there: the guest's tables tell what is, once."""
        return segment in self._segments

    def translation(self) -> Translation:
        """The memory of a device that is behind the IOMMU."""
        return self.device.translation()

    def plugged(self, plugged: PluggedDevice, address: PciAddress) -> None:
        """A device that is not behind the IOMMU has its place, the IOMMU itself perhaps."""
        if plugged.device is self.device:
            self._place = address

    def plugged_behind(self, address: PciAddress, translation: Reach, endpoint: Endpoint) -> None:
        """A device that is."""
        self._behind.append(address)
        self.device.add_endpoint(endpoint_id(address), translation, endpoint)

    def plugged_beside(self, address: PciAddress) -> None:
        """A device of which the guest is told the same, and that knows physical addresses alone."""
        self.plugged_behind(address, self.translation(), _Physical())

    def unplugged(self, address: PciAddress) -> None:
        """Nothing is there any more."""
        if address in self._behind:
            self._behind.remove(address)
            self.device.remove_endpoint(endpoint_id(address))

    def failed(self, address: PciAddress, error: Exception) -> None:
        """The device there broke: if that was an access that is not translated, it is a fault."""
        if isinstance(error, GuestFault):
            self.device.fault(endpoint_id(address), error.address)

    def close(self) -> None:
        """The machine goes; before its devices do."""
        self.device.power_off()

    def describe(self) -> firmware.VirtioIommu | None:
        """For the VIOT."""
        if self._place is None:
            return None
        single = [firmware.EndpointRange(a.segment, a.requester_id, a.requester_id) for a in self._behind]
        ranges = [r for r in single if r.segment not in self._segments]
        for segment in sorted(set(self._segments)):  # whole, with what may come
            ranges += _around(segment, self._place, 0 if segment in self._bare else 1)
        return firmware.VirtioIommu(self._place.segment, self._place.requester_id, tuple(ranges))


class _Physical:
    """An endpoint whose addresses are not translated."""

    def uses(self, _start: int, _end: int) -> bool:
        return False

    async def revalidate(self) -> None:
        return


def _around(segment: int, iommu: PciAddress, first: int) -> list[firmware.EndpointRange]:
    """All slots of a segment from `first` on but that of the IOMMU."""
    cut = iommu.slot if segment == iommu.segment else SLOTS
    spans = [(first, cut - 1), (cut + 1, SLOTS - 1)]
    return [firmware.EndpointRange(segment, low << 3, high << 3) for low, high in spans if low <= high]


def endpoint_id(address: PciAddress) -> int:
    """As the VIOT numbers functions: segment, bus, device, function."""
    return address.segment << 16 | address.requester_id


def machine_iommu(parts: MachineParts, memory: GuestMemory) -> MachineIommu | None:
    """The IOMMU, if one is plugged."""
    for plugged in parts.plugged:
        if plugged.device.device_id == _IOMMU:
            device = cast("IommuDevice", plugged.device)
            return MachineIommu(device, memory, parts.config.platform.iommu_segments, parts.bare_segments)
    return None


def wants_iommu(parts: MachineParts) -> bool:
    """Whether any device is to be behind an IOMMU."""
    behind = any(p.iommu for p in parts.plugged) or any(d.iommu for d in parts.config.devices)
    return behind or bool(parts.config.platform.iommu_segments)


def refuse_remote(config: VMConfig) -> None:
    """Raise ConfigError for a device behind the IOMMU whose back end is another process: that has all of memory mapped, and
    no translation in front of it."""
    remote = [("disk", d) for d in config.disks if d.vhost_user] + [("net", n) for n in config.nets if n.vhost_user]
    for option, device in [*remote, *(("fs", f) for f in config.fs)]:
        refuse_remote_device(config, option, device)


def refuse_remote_device(config: VMConfig, option: str, device: PlacedConfig) -> None:
    """The same for one device, of which it is known."""
    if device.iommu or device.pci_segment in config.platform.iommu_segments:
        raise ConfigError(
            f"{option}.iommu",
            "a vhost-user back end reaches guest memory by itself, and not through the IOMMU",
            "leave iommu=on out, or put the device into another PCI segment",
        )
