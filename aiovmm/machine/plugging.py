"""What is plugged into a machine's PCI, by id: virtio devices, and devices of the host. Those that it is built with, and those
that come and go while it is there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from aiovmm.kvm import VmFd
from aiovmm.machine.iommu import MachineIommu
from aiovmm.machine.owner import MachineOwner
from aiovmm.machine.parts import MachineParts, PluggedDevice
from aiovmm.machine.pci import KvmPciServices, PciBuses
from aiovmm.memory import GuestMemory
from aiovmm.pci.root import PciAddress
from aiovmm.virtqueue.device import VirtioDevice

if TYPE_CHECKING:
    from aiovmm.machine.hosts import MachineHosts
    from aiovmm.machine.passthrough import HostPlace
    from aiovmm.memory import MemoryRegion
    from aiovmm.pci.virtio import VirtioPci
    from aiovmm.virtqueue.config import QueueCounters

__all__ = ["MachineDevices"]


class MachineDevices:
    """See the module. `iommu` is what stands between devices and memory, if anything does."""

    def __init__(
        self,
        parts: MachineParts,
        owner: MachineOwner,
        vm: VmFd,
        memory: GuestMemory,
        pci: PciBuses,
        services: KvmPciServices,
        iommu: MachineIommu | None,
    ) -> None:
        self.functions: dict[str, VirtioPci] = {}
        self.iommu = iommu
        self._parts = parts
        self._owner = owner
        self._vm = vm
        self._memory = memory
        self._pci = pci
        self._services = services
        self._hosts: MachineHosts | None = None  # devices of the host, once there are any

    async def plug_all(self) -> None:
        """Those of the parts, in their order: virtio devices, those of the host, the IOMMU last. Raises HostError, UsageError."""
        for segment, slot in self._parts.chosen_slots():
            self._pci.root.reserve(segment, slot)
        last = [p for p in self._parts.plugged if self.iommu is not None and p.device is self.iommu.device]
        for plugged in [p for p in self._parts.plugged if p not in last]:
            self._plug(plugged)
        for place in self._parts.hosts:
            await self.plug_host(place)
        for plugged in last:
            self._plug(plugged)

    def _plug(self, plugged: PluggedDevice) -> None:
        error = partial(_virtio_failed, self._owner, plugged.id)
        self.functions[plugged.id] = self._pci.plug(plugged, error, self.iommu)

    def plug(self, plugged: PluggedDevice) -> PciAddress:
        """Put in one more device, which is open. Raises UsageError."""
        self._plug(plugged)
        return self.address(plugged.id)

    async def plug_host(self, place: HostPlace) -> PciAddress:
        """The same with a device of the host, which is open. Raises HostError, UsageError."""
        if self._hosts is None:
            from aiovmm.devices.virtio.mem import MemDevice
            from aiovmm.machine.hosts import MachineHosts  # for machines that have some

            name, failed = self._parts.config.name, self._owner.device_failed
            vm, memory = self._vm, self._memory
            growing = [p.device for p in self._parts.plugged if isinstance(p.device, MemDevice)]
            self._hosts = MachineHosts(name, self._pci.root, self._services, vm, memory, failed, self.iommu, growing)
        return await self._hosts.plug(place)

    async def unplug(self, id_: str) -> None:
        """Take a device out: nothing of it touches memory any more. It stays open. Raises KeyError, HostError."""
        if self._hosts is not None and id_ in self._hosts.addresses:
            await self._hosts.unplug(id_)
            return
        address = self.address(id_)
        del self.functions[id_]
        await self._pci.unplug(address, self.iommu)

    async def quiet_hosts(self) -> None:
        """Take those of the host out, for good: they reach no memory any more. Idempotent."""
        if self._hosts is not None:
            await self._hosts.aclose()

    async def memory_came(self, region: MemoryRegion) -> None:
        """One more of its memory, which the guest is to be told of next: devices of the host reach it. Raises HostError; then
        it is to go again."""
        if self._hosts is not None:
            await self._hosts.memory_came(region)

    async def memory_gone(self, region: MemoryRegion) -> None:
        """It is none of its memory any more, and neither the guest's nor a device's when this is done. Raises HostError."""
        if self._hosts is not None:
            await self._hosts.memory_gone(region)

    def address(self, id_: str) -> PciAddress:
        """Where a device is. Raises KeyError."""
        if id_ in (hosts := self._host_addresses):
            return hosts[id_]
        place = self.functions[id_].place
        return PciAddress(place.segment, place.slot)

    @property
    def addresses(self) -> dict[str, PciAddress]:
        """Where each of them is."""
        return {id_: self.address(id_) for id_ in self.functions} | self._host_addresses

    @property
    def _host_addresses(self) -> dict[str, PciAddress]:
        return self._hosts.addresses if self._hosts is not None else {}

    def queue_counters(self, id_: str) -> list[QueueCounters]:
        """Of the queues of a virtio device that is served here; none of one that another process serves."""
        from aiovmm.virtqueue.runner import DeviceRunner

        backend = self.functions[id_].backend if id_ in self.functions else None
        return backend.counters() if isinstance(backend, DeviceRunner) else []


def _virtio_failed(owner: MachineOwner, id_: str, _device: VirtioDevice, error: Exception) -> None:
    owner.device_failed(id_, error)
