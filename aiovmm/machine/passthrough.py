"""Devices of the host (VFIO) for the VM's whole life: opened before they are in a machine, so that what the host lacks is said
before there is a VM, or before a guest that runs is told; and given back when they go, or at the VM's end.

What a machine has of them is in `machine.hosts`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from aiovmm.config import DeviceConfig, VMConfig
from aiovmm.config.ids import device_ids
from aiovmm.errors import ConfigError
from aiovmm.vfio import AddressSpace, Container, HostDevice, HostSystem, Ioas, Iommufd, System
from aiovmm.vfio.limits import check_lockable

__all__ = ["HostPlace", "Passthrough"]


@dataclass(frozen=True)
class HostPlace:
    """A device, the id it is known by, the segment it sits on; what it reaches, and whether the virtual IOMMU decides on that."""

    id: str
    device: HostDevice
    segment: int
    space: AddressSpace
    iommu: bool = False
    slot: int | None = None


class Passthrough:
    """See the module. Devices behind the virtual IOMMU have an address space each, the others one together, while any of
    them is there: containers of VFIO, or with platform.iommufd spaces of one iommufd."""

    def __init__(self, config: VMConfig, system: System | None = None) -> None:
        self._system = HostSystem() if system is None else system
        self._name = config.name
        self._iommufd = Iommufd(self._system, config.platform.iommufd_fd) if config.platform.iommufd else None
        self._common = self._new_space()
        self._busy = threading.Lock()  # of threads: groups and containers are given back step by step
        self.places = [
            self.place(id_, device, config)
            for id_, device in zip(device_ids(config).get("devices", ()), config.devices, strict=True)
        ]
        self._memory_size = config.lockable_ram

    def place(self, id_: str, device: DeviceConfig, config: VMConfig) -> HostPlace:
        """What a device of this configuration is, that is not open yet and none of `places`."""
        behind = device.iommu or device.pci_segment in config.platform.iommu_segments
        space = self._new_space() if behind else self._common
        label, trapped = f"{config.name}: {id_}", device.x_exclude_mmap_bars
        where = device.path if device.fd is None else device.fd
        assert where is not None, "its configuration has one of them"
        host = HostDevice(where, space, self._system, label, trapped)
        return HostPlace(id_, host, device.pci_segment, space, behind, device.pci_device_id)

    def _new_space(self) -> AddressSpace:
        return Container(self._system) if self._iommufd is None else Ioas(self._iommufd)

    def open(self) -> None:
        """Take all devices from the host. Blocks. Raises HostError, ConfigError; `close` then gives back what was taken."""
        check_lockable(self._memory_size)
        for place in self.places:
            self._open(place)

    def open_one(self, place: HostPlace, memory_size: int) -> None:
        """Take one more, which reaches so many bytes of the guest's memory. Blocks. Raises HostError, ConfigError, with nothing
        taken."""
        check_lockable(memory_size)
        with self._busy:
            self._open(place)

    def close_one(self, place: HostPlace) -> None:
        """Give one back, while another may be taken that is of its group. Blocks. Idempotent."""
        with self._busy:
            place.device.close()

    def _open(self, place: HostPlace) -> None:
        function = place.device.find()
        for other in [other for other in self.places if other is not place and other.device.is_open]:
            if other.device.name == function.address:
                raise ConfigError("device.path", f"{function.address} is this guest's already, as {other.id!r}")
            taken = other.device.function
            if taken is not None and taken.group == function.group and other.space is not place.space:
                raise ConfigError(
                    "device.iommu",
                    f"{other.device.name} and {function.address} are of one IOMMU group, and cannot reach different memory",
                    "hand over one of them, or put neither behind the virtual IOMMU",
                )
        place.device.open()

    def close(self) -> None:
        """Give them back. Blocks. Idempotent."""
        for place in reversed(self.places):
            self.close_one(place)
