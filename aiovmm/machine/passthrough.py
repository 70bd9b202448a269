"""Devices of the host in a machine (VFIO).

`Passthrough` is theirs for the VM's whole life: devices opened before the machine is built, so that what the host lacks is said
before there is a VM, and given back at its end. `plugged_in` is one machine's: guest memory mapped for them, functions on PCI.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiovmm.config import DeviceConfig, VMConfig
from aiovmm.config.ids import device_ids
from aiovmm.errors import ConfigError
from aiovmm.kvm.vfio import KvmVfio
from aiovmm.kvm.vmfd import VmFd
from aiovmm.machine.iommu import MachineIommu
from aiovmm.memory import GuestMemory
from aiovmm.pci.root import PciAddress, PciRoot
from aiovmm.runtime.tasks import in_thread
from aiovmm.vfio import Container, Follower, HostDevice, HostSystem, System, VfioFunction, VfioServices
from aiovmm.vfio.limits import check_lockable

__all__ = ["HostPlace", "Passthrough"]

OnError = Callable[[str, Exception], None]


@dataclass(frozen=True)
class HostPlace:
    """A device, the id it is known by, the segment it sits on; what it reaches, and whether the virtual IOMMU decides on that."""

    id: str
    device: HostDevice
    segment: int
    container: Container
    iommu: bool = False
    slot: int | None = None


class Passthrough:
    """See the module. Devices behind the virtual IOMMU have a container each, the others one together."""

    def __init__(self, config: VMConfig, system: System | None = None) -> None:
        self._system = HostSystem() if system is None else system
        self._name = config.name
        self._memory_size = config.ram_size
        self._common = Container(self._system)
        self.addresses: dict[str, PciAddress] = {}
        """Of the present machine, by id."""
        self.places = [
            self._place(id_, device, config)
            for id_, device in zip(device_ids(config).get("devices", ()), config.devices, strict=True)
        ]

    def _place(self, id_: str, device: DeviceConfig, config: VMConfig) -> HostPlace:
        behind = device.iommu or device.pci_segment in config.platform.iommu_segments
        container = Container(self._system) if behind else self._common
        label, trapped = f"{config.name}: {id_}", device.x_exclude_mmap_bars
        host = HostDevice(device.path, container, self._system, label, trapped)
        return HostPlace(id_, host, device.pci_segment, container, behind, device.pci_device_id)

    def open(self) -> None:
        """Take all devices from the host. Blocks. Raises HostError, ConfigError; `close` then gives back what was taken."""
        check_lockable(self._memory_size)
        taken: dict[int, HostPlace] = {}
        for place in self.places:
            function = place.device.find()
            other = taken.setdefault(function.group, place)
            if other.container is not place.container:
                raise ConfigError(
                    "device.iommu",
                    f"{other.device.name} and {function.address} are of one IOMMU group, and cannot reach different memory",
                    "hand over one of them, or put neither behind the virtual IOMMU",
                )
            place.device.open()

    def close(self) -> None:
        """Give them back. Blocks. Idempotent."""
        for place in reversed(self.places):
            place.device.close()

    @asynccontextmanager
    async def plugged_in(
        self,
        root: PciRoot,
        services: VfioServices,
        vm: VmFd,
        memory: GuestMemory,
        on_error: OnError,
        iommu: MachineIommu | None = None,
    ) -> AsyncIterator[None]:
        """All devices are in this machine; afterwards they are quiet and reach no memory. Raises HostError, UsageError."""
        async with AsyncExitStack() as stack:
            off_loop: Any = partial(in_thread, f"{self._name}: vfio dma")
            kvm = KvmVfio(vm)
            stack.push_async_callback(off_loop, kvm.close)
            containers = dict.fromkeys(place.container for place in self.places)
            for container in containers:
                for group in container.groups:
                    await off_loop(kvm.add_group, group.fd)
                stack.push_async_callback(off_loop, container.unmap)
            if self._common.groups:
                await off_loop(self._common.map, memory.regions)
            for place in self.places:
                function = VfioFunction(place.device, services, on_error)
                stack.push_async_callback(function.close)
                await function.start()
                address = self.addresses[place.id] = root.add(function, place.segment, place.slot)
                if place.iommu:
                    assert iommu is not None, "a machine with a device behind an IOMMU has one"
                    follower = Follower(
                        memory, place.container, partial(on_error, place.device.name), place.device.label
                    )
                    stack.push_async_callback(follower.aclose)
                    iommu.plugged_behind(address, follower, follower)
                    await follower.revalidate()
            yield
