"""The machine that arm64 guests are given: GICv3 with ITS, PSCI, and all else in a device tree. See machine.board."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from aiovmm.boot.aarch64 import (
    Hardware,
    KernelImage,
    end_of_ram,
    fresh_seeds,
    gic_of,
    layout,
    msi_device_id,
    ram_ranges,
    setup_linux,
)
from aiovmm.config import VMConfig
from aiovmm.errors import KvmError
from aiovmm.kvm import FinalExit, Kvm
from aiovmm.kvm.aarch64 import pmu
from aiovmm.kvm.aarch64.clock import GuestCounter
from aiovmm.kvm.aarch64.features import VcpuFeatures
from aiovmm.kvm.aarch64.gic import Gic
from aiovmm.kvm.aarch64.host import CAP_NISV_TO_USER, address_bits
from aiovmm.kvm.exits import SystemEvent, SystemEventType
from aiovmm.kvm.vmfd import VmFd
from aiovmm.lifecycle import ExitReason
from aiovmm.machine.aarch64.generation import VmGeneration
from aiovmm.machine.aarch64.intx import IntxPins, IntxWire
from aiovmm.machine.aarch64.platform import PlatformDevices
from aiovmm.machine.aarch64.processors import affinities, check, create_vcpus, enter, topology_of
from aiovmm.machine.board import Board, Finding
from aiovmm.machine.interrupts import Message
from aiovmm.machine.iommu import MachineIommu
from aiovmm.machine.pci import describe_segments
from aiovmm.memory import GuestMemory
from aiovmm.pci.plan import SegmentPlan, Window, plan_segments
from aiovmm.pci.root import PciRoot
from aiovmm.pci.services import Place
from aiovmm.runtime.plain import Fields, State

if TYPE_CHECKING:
    from aiovmm.boot.aarch64.layout import Gic as GicPlaces
    from aiovmm.machine.aarch64.saved import Processors
    from aiovmm.machine.restored import Restored

__all__ = ["Virt"]


class Virt(Board):
    """vCPUs come first: the interrupt controller has a part for each, and everything else is joined to it."""

    _vm: VmFd
    _memory: GuestMemory
    _counter: GuestCounter
    _features: VcpuFeatures
    _places: GicPlaces
    _processors: Processors | None = None  # of a machine that goes on from a saved one
    _gic: Gic | None = None
    _generation: VmGeneration | None = None
    _devices: PlatformDevices | None = None
    _intx: IntxPins | None = None

    # -- the address map

    def lay_out(self, size: int) -> list[tuple[int, int]]:
        """From 1 GiB, and from 4 GiB."""
        return ram_ranges(size)

    @property
    def device_memory_start(self) -> int:
        """After all RAM, above 4 GiB."""
        return end_of_ram(self.ram)

    @property
    def taken(self) -> list[tuple[str, int, int]]:
        """What KVM answers for, and what is memory."""
        start = self._places.its
        return [
            ("the interrupt controller", start, layout.GIC_DISTRIBUTOR + layout.GIC_DISTRIBUTOR_SIZE - start),
            ("the VM generation", layout.GENERATION, layout.GENERATION_SIZE),
        ]

    @property
    def free(self) -> tuple[int, int]:
        """From the devices on the board to the first PCI window."""
        return layout.BOARD_END, layout.PCI_MMIO32

    @staticmethod
    def messages(config: VMConfig) -> tuple[int, int]:
        """The page that takes the messages of devices."""
        page = gic_of(config.cpus.boot).doorbell & -layout.TRANSLATER_SIZE
        return page, page + layout.TRANSLATER_SIZE - 1

    def plan_pci(self, count: int, start: int) -> list[SegmentPlan]:
        """32-bit windows below RAM."""
        mmio32 = Window(layout.PCI_MMIO32, layout.PCI_MMIO32_SIZE)
        window = Window(start, (1 << self.address_bits) - start)
        return plan_segments(count, layout.ECAM, mmio32, window, self.parts.config.aperture_weights)

    # -- building

    def examine(self, kvm: Kvm) -> None:
        """Features, and how far addresses reach."""
        cpus = self.parts.config.cpus
        check(self.parts.config)
        self._places = gic_of(cpus.boot)
        self._features = VcpuFeatures.of(kvm.fd)
        self.address_bits = min(address_bits(kvm.fd), cpus.max_phys_bits or 64)
        if self.restored is not None:
            from aiovmm.machine.aarch64.saved import Processors  # for machines that do not boot

            self.address_bits = self.restored.address_bits(self.address_bits)
            self._processors = Processors.of(self.restored, cpus, self._features)
            self._features = self._processors.features

    def set_up(self, vm: VmFd) -> None:
        """vCPUs and the interrupt controller."""
        self._vm = vm
        if self._processors is None:
            self.vcpus = create_vcpus(vm, self.parts.config.cpus, self._features)
        else:
            self.vcpus = self._processors.create(vm)
        with suppress(KvmError):  # before Linux 5.5: such an access is then the end of the guest
            vm.enable(CAP_NISV_TO_USER, 0, "asking for accesses without a syndrome")
        places = self._places
        self._gic = Gic(vm, distributor=places.distributor, redistributors=places.redistributors, its=places.its)
        if self._features.pmu:
            pmu.set_up(self.vcpus, layout.PMU_PPI)
        self._generation = VmGeneration(vm)

    def add_devices(self) -> None:
        """Serial port, clock, power button."""
        self._intx = IntxPins(self._vm, layout.INTX_SPIS, self.off_loop)
        self._devices = PlatformDevices(self.bus, self._vm, self.parts)

    def add_pci(self, root: PciRoot) -> None:
        """Configuration spaces are in memory, and that is all."""

    def load(self, memory: GuestMemory) -> None:
        """Its vCPUs are there already; initramfs and device tree come with `describe`."""
        kernel = self.parts.kernel
        assert isinstance(kernel, KernelImage), "it was loaded on this host"
        kernel.load_into(memory)
        self._memory, self._counter = memory, GuestCounter()

    def describe(self, memory: GuestMemory, root: PciRoot, iommu: MachineIommu | None) -> Callable[[], None] | None:
        """By the device tree, for the kernel's own protocol."""
        assert self._devices is not None
        cpus = self.parts.config.cpus
        hardware = Hardware(
            mpidrs=affinities(self.vcpus),
            gic=self._places,
            pci_segments=describe_segments(root.segments),
            topology=topology_of(cpus),
            pmu=self._features.pmu,
            uart=self._devices.uart,
            generation=True,
            iommu=iommu.describe() if iommu is not None else None,
        )
        return partial(self._enter, memory, hardware)

    def _enter(self, memory: GuestMemory, hardware: Hardware) -> None:
        config, kernel = self.parts.config, self.parts.kernel
        assert isinstance(kernel, KernelImage), "it was loaded"
        initramfs = config.payload.initramfs
        state = setup_linux(memory, kernel, config.cmdline, initramfs, self.ram, hardware, fresh_seeds())
        enter(self.vcpus[0], state)

    def restore(self, memory: GuestMemory, restored: Restored) -> None:
        """vCPUs, the interrupt controller, clocks."""
        assert self._processors is not None, "it was examined"
        assert self._gic is not None, "it was set up"
        self._processors.put(self.vcpus, self._gic)
        self._memory, self._counter = memory, GuestCounter(self._processors.stood)

    async def restore_devices(self, restored: Restored) -> None:
        """Serial port, clock, power button, which assert their lines again."""
        assert self._devices is not None
        await self._devices.load(Fields(restored.state, "machine").state("devices"))

    def unsuspend_devices(self) -> None:
        """The clock, the serial port, the power button. And the guest is told that it is another now: Linux from 6.10 on then
        makes new random numbers."""
        assert self._devices is not None
        assert self._generation is not None
        self._devices.unsuspend()
        self._generation.tell()

    # -- while it is there

    def stand_still(self) -> None:
        """The counter, if they were at work."""
        self._counter.stop(self.vcpus, self._memory)

    def go_on(self) -> None:
        """The counter, from where it stood."""
        self._counter.start(self.vcpus)

    def save(self) -> State:
        """vCPUs, the interrupt controller, clocks."""
        from aiovmm.machine.aarch64.saved import save_processors  # for machines that are saved

        assert self._gic is not None, "it was set up"
        processors = save_processors(self.vcpus, self._features, self._gic, self._counter)
        return {"address_bits": self.address_bits, "processors": processors}

    def save_devices(self) -> State:
        """Serial port, clock, power button."""
        assert self._devices is not None
        return self._devices.save()

    def message(self, address: int, data: int, place: Place) -> Message | None:
        """To the ITS, which goes by who sends it."""
        if address != self._places.doorbell:
            return None
        return Message(address, data, msi_device_id(place.segment, place.requester_id))

    def intx_line(self, ended: Callable[[], None], place: Place) -> IntxWire:
        """An SPI: of those, whichever has fewest."""
        assert self._intx is not None
        return self._intx.line(ended)

    def press_power_button(self) -> None:
        """A key on a line of the PL061."""
        assert self._devices is not None
        self._devices.press_power_button()

    def slots_changed(self) -> None:
        """There are no `slots`: a device tree tells of what is there at the start, and of nothing that comes."""

    def judge(self, _index: int, final: FinalExit) -> Finding | None:
        """PSCI, which KVM answers, ends the machine."""
        match final:
            case SystemEvent(type=SystemEventType.SHUTDOWN):
                return ExitReason.SHUTDOWN, "powered off by PSCI"
            case SystemEvent(type=SystemEventType.RESET):
                return ExitReason.REBOOT, "reset by PSCI"
        return None

    def close(self) -> None:
        """The console off the serial port, the readers of interrupts' ends, what the interrupt controller is read by."""
        if self._devices is not None:
            self._devices.close()
        if self._intx is not None:
            self._intx.close()
        if self._gic is not None:
            self._gic.close()
        if self._generation is not None:
            self._generation.close()
