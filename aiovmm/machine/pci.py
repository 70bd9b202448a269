"""PCI on this machine: its services by KVM, its segments, and virtio devices plugged into them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from aiovmm.boot import pci as firmware
from aiovmm.bus import Bus, Space
from aiovmm.errors import ConfigError, KvmError
from aiovmm.kvm.ioeventfd import Ioeventfd
from aiovmm.kvm.vmfd import HostMemorySlot, VmFd
from aiovmm.machine.interrupts import KvmMsiLine, ToKvm, set_lines
from aiovmm.machine.iommu import MachineIommu
from aiovmm.machine.parts import PluggedDevice
from aiovmm.memory import GuestMemory
from aiovmm.native.mapping import Mapping
from aiovmm.pci.plan import SegmentPlan
from aiovmm.pci.root import PciAddress, PciRoot
from aiovmm.pci.segment import PciSegment
from aiovmm.pci.services import IntxLine, LineChange, Place
from aiovmm.runtime.worker import Worker
from aiovmm.virtqueue.device import VirtioDevice

if TYPE_CHECKING:
    from aiovmm.pci.virtio import VirtioPci

__all__ = ["KvmPciServices", "PciBuses", "describe_segments", "start_of_bars", "wires_of"]

CreateTask = Callable[..., "asyncio.Task[None]"]
MakeIntxLine = Callable[[Callable[[], None], Place], IntxLine]
DeviceError = Callable[[VirtioDevice, Exception], None]


class KvmPciServices:
    """pci.services.PciServices and vfio.VfioServices of one machine."""

    def __init__(
        self,
        vm: VmFd,
        bus: Bus,
        memory: GuestMemory,
        create_task: CreateTask,
        worker: Worker,
        to_kvm: ToKvm,
        intx_line: MakeIntxLine,
    ) -> None:
        """`to_kvm` and `intx_line` are the board's."""
        self.intx_line = intx_line
        """A wire to a pin of the interrupt controller. See PciServices."""
        self._vm = vm
        self._worker = worker
        self._bus = bus
        self._memory = memory
        self._create_task = create_task
        self._to_kvm = to_kvm

    @property
    def bus(self) -> Bus:
        """The machine's bus."""
        return self._bus

    @property
    def memory(self) -> GuestMemory:
        """Guest memory."""
        return self._memory

    def message(self, address: int, data: int, place: Place) -> Callable[[], None]:
        """Sent by one ioctl, without a descriptor or a route."""
        message = self._to_kvm(address, data, place)
        return _nowhere if message is None else self._vm.message(*message)

    def msi_line(self, name: str, place: Place) -> KvmMsiLine:
        """A new, masked line."""
        return KvmMsiLine(self._vm, name, self._to_kvm, place)

    def ioeventfd(self, space: Space, address: int, size: int, fd: int) -> Ioeventfd | None:
        """A doorbell in KVM; None if KVM refuses it, and the writes come through the bus."""
        try:
            return self._vm.ioeventfd(space, address, size, fd)
        except KvmError:
            return None

    def memory_slot(self, address: int, size: int, mapping: Mapping) -> HostMemorySlot:
        """Memory of this process before the guest's eyes. Raises KvmError."""
        return self._vm.host_memory(address, size, mapping)

    def set_lines(self, changes: Sequence[LineChange]) -> None:
        """Routes are committed once for all of them. Raises KvmError."""
        set_lines(self._vm, [(cast("KvmMsiLine", c.line), c.address, c.data, c.masked) for c in changes])

    def off_loop(
        self, work: Callable[[], None], then: Callable[[BaseException | None], None] | None = None
    ) -> Awaitable[None]:
        """In the machine's own thread."""
        return self._worker.submit(work, then)

    def create_task(self, coro: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """A task of the VM."""
        return self._create_task(coro, name=name)


def _nowhere() -> None:
    """A message that no interrupt controller takes."""


def start_of_bars(count: int, end_of_memory: int, address_bits: int) -> int:
    """Where 64-bit BARs of `count` segments may begin: at the first GiB after all memory. Raises ConfigError when memory
    leaves no room below the top of the physical address space."""
    start = -(-end_of_memory // (1 << 30)) << 30
    if start + (count << 30) > 1 << address_bits:
        reason = f"RAM and pmem would end at {end_of_memory:#x}, and this processor has {address_bits} address bits"
        raise ConfigError("memory.size", reason, "give the guest less memory, or smaller pmem files")
    return start


def describe_segments(segments: Sequence[PciSegment]) -> tuple[firmware.PciSegment, ...]:
    """The same for the firmware's tables, with the wires of the functions that have an interrupt pin."""
    return tuple(
        firmware.PciSegment(
            s.plan.number,
            s.plan.ecam_base,
            firmware.Window(s.plan.mmio32.base, s.plan.mmio32.size),
            firmware.Window(s.plan.mmio64.base, s.plan.mmio64.size),
            start_bus=s.plan.bus_start,
            end_bus=s.plan.bus_end,
            intx=wires_of(s),
            bridge=not s.bare,
        )
        for s in segments
    )


def wires_of(segment: PciSegment) -> tuple[firmware.IntxWire, ...]:
    """Of its functions' pins."""
    found = ((slot, function.interrupt_gsi) for slot, function in sorted(segment.functions.items()))
    return tuple(firmware.IntxWire(slot, gsi) for slot, gsi in found if gsi is not None)


@cache
def _transport() -> type[VirtioPci]:
    from aiovmm.pci.virtio import VirtioPci  # for machines that have such a device

    return VirtioPci


class PciBuses:
    """All segments of a machine with what is plugged into them."""

    def __init__(self, plans: Sequence[SegmentPlan], services: KvmPciServices, bare: Collection[int] = ()) -> None:
        self.root = PciRoot(plans, services, bare)
        self._services = services

    def plug(self, plugged: PluggedDevice, on_error: DeviceError, iommu: MachineIommu | None = None) -> VirtioPci:
        """Put a virtio device into its slot, or the first free one of its segment; behind the IOMMU if it is to be. Raises
        UsageError."""
        covered = iommu is not None and iommu.covers(plugged)
        if covered and not plugged.device.physical:
            assert iommu is not None
            return self._plug_behind(plugged, on_error, iommu)
        place = self.root.free_place(plugged.segment, plugged.slot)
        function = _transport()(plugged.device, self._services, on_error=on_error, place=place)
        address = self.root.add(function, place.segment, place.slot)
        if iommu is not None and covered:
            iommu.plugged_beside(address)
        elif iommu is not None:
            iommu.plugged(plugged, address)
        return function

    def _plug_behind(self, plugged: PluggedDevice, on_error: DeviceError, iommu: MachineIommu) -> VirtioPci:
        from aiovmm.virtqueue.features import ACCESS_PLATFORM, RING_FEATURES
        from aiovmm.virtqueue.runner import DeviceRunner

        def failed(device: VirtioDevice, error: Exception) -> None:
            iommu.failed(address, error)
            on_error(device, error)

        translation, features = iommu.translation(), RING_FEATURES | ACCESS_PLATFORM
        place = self.root.free_place(plugged.segment, plugged.slot)
        function = _transport()(
            plugged.device, self._services, memory=translation, features=features, on_error=failed, place=place
        )
        address = self.root.add(function, place.segment, place.slot)
        assert isinstance(function.backend, DeviceRunner)
        iommu.plugged_behind(address, translation, function.backend)
        return function

    async def unplug(self, address: PciAddress, iommu: MachineIommu | None) -> None:
        """Reset the device that is there and take it out."""
        try:
            await self.root.remove(address)
        finally:
            if iommu is not None:
                iommu.unplugged(address)

    async def close(self) -> None:
        """Reset every device and take it out. Idempotent."""
        await self.root.close()
