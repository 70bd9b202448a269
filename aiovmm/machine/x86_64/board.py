"""The PC that x86-64 guests are given: no firmware, hardware-reduced ACPI."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from aiovmm.boot.x86_64 import layout, ram_ranges
from aiovmm.boot.x86_64.acpi import AcpiPorts, NumaNode
from aiovmm.bus import Range, Space
from aiovmm.config import HotplugMethod, VMConfig
from aiovmm.devices.acpi import GedEvent
from aiovmm.devices.hotplug.slots import SlotRegisters
from aiovmm.devices.ioapic import IntxLine, IntxPins
from aiovmm.kvm import FinalExit, Kvm, Vcpu, VmFd
from aiovmm.kvm.exits import EMULATION, InternalError, Shutdown
from aiovmm.kvm.x86_64.clock import GuestClock
from aiovmm.kvm.x86_64.counters import take_counters
from aiovmm.kvm.x86_64.harm import bound_harm
from aiovmm.kvm.x86_64.irqchip import set_identity_pages, split_irqchip
from aiovmm.lifecycle import ExitReason
from aiovmm.machine.board import Board, Finding
from aiovmm.machine.interrupts import Message
from aiovmm.machine.iommu import MachineIommu
from aiovmm.machine.x86_64.blame import emulation_failed, triple_fault
from aiovmm.machine.x86_64.interrupts import IoApicSink, message_for_kvm
from aiovmm.machine.x86_64.legacy import LegacyDevices
from aiovmm.machine.x86_64.tables import describe, write_generation, write_tables
from aiovmm.machine.x86_64.vcpus import Processor, add_vcpu, create_vcpus
from aiovmm.memory import GuestMemory
from aiovmm.pci.plan import SegmentPlan, Window, plan_segments
from aiovmm.pci.root import PciRoot
from aiovmm.pci.services import Place
from aiovmm.runtime.plain import Fields, State

if TYPE_CHECKING:
    from aiovmm.devices.hotplug.units import UnitRegisters  # of machines that are saved, or restored
    from aiovmm.machine.restored import Restored

__all__ = ["Pc"]

_MODULES, _PROCESSORS = 0xB00, 0x1000  # ports, of which each has one
_LAPIC_SIZE = 1 << 20  # where messages go, too


class Pc(Board):
    """vCPUs come last: they take the interrupt controller that there is, and the boot processor the kernel's entry."""

    takes_processors = has_ports = True
    legacy: LegacyDevices
    _processor: Processor
    _clock: GuestClock
    _pins: IntxPins
    _memory: GuestMemory
    _cpuids: list[bytes]  # of each vCPU, as KVM takes it
    _held: Collection[int]  # vectors that its local APICs had accepted, of a guest that goes on
    _parked: dict[int, bytes]  # of those that have gone, which KVM has still

    # -- the address map

    def lay_out(self, size: int) -> list[tuple[int, int]]:
        """Below the PCI hole, and from 4 GiB."""
        return ram_ranges(size)

    @property
    def device_memory_start(self) -> int:
        """After all RAM, above 4 GiB."""
        return layout.end_of_ram(self.ram)

    @property
    def taken(self) -> list[tuple[str, int, int]]:
        """What KVM answers for."""
        return [
            ("the local APIC", layout.LAPIC, _LAPIC_SIZE),
            ("KVM's own pages", layout.KVM_IDENTITY_MAP, 4 * layout.PAGE),
        ]

    @property
    def free(self) -> tuple[int, int]:
        """From the configuration spaces to the I/O APIC."""
        return layout.ECAM + layout.ECAM_SIZE, layout.IOAPIC

    @staticmethod
    def messages(_config: VMConfig) -> tuple[int, int]:
        """Those of all local APICs."""
        return layout.LAPIC, layout.LAPIC + _LAPIC_SIZE - 1

    def plan_pci(self, count: int, start: int) -> list[SegmentPlan]:
        """32-bit windows in the hole below 4 GiB."""
        mmio32 = Window(layout.MMIO32, layout.MMIO32_SIZE)
        window = Window(start, (1 << self.address_bits) - start)
        return plan_segments(count, layout.ECAM, mmio32, window, self.parts.config.aperture_weights)

    # -- building

    def examine(self, kvm: Kvm) -> None:
        """CPUID."""
        self._processor = Processor.of(kvm, self.parts.config.cpus)
        self.address_bits = self._processor.reachable_bits
        if self.restored is not None:
            self.address_bits = self.restored.address_bits(self.address_bits)

    def set_up(self, vm: VmFd) -> None:
        """The split interrupt controller, and what single instructions may do to others."""
        self._parked = {}
        self._vm = vm
        set_identity_pages(vm, layout.KVM_IDENTITY_MAP)
        split_irqchip(vm)
        bound_harm(vm)
        if "pmu" not in self.parts.config.cpus.features:
            take_counters(vm)

    def add_devices(self) -> None:
        """The I/O APIC and what is wired to it."""
        cpus, memory = self.parts.config.cpus, self.parts.config.memory
        if cpus.max is not None:
            self.processors = self._units("processors", _PROCESSORS, cpus.max, cpus.boot)
        if memory.modules_size and memory.hotplug_method is HotplugMethod.ACPI:
            from aiovmm.machine.hotplug.places import at_start, modules

            end = self.device_memory_start
            there = len(at_start(memory, end))
            self.modules = self._units("memory modules", _MODULES, len(modules(memory, end)), there)
        self._ports = AcpiPorts(
            processors=_PROCESSORS if self.processors is not None else None,
            modules=_MODULES if self.modules is not None else None,
        )
        sink = IoApicSink(self._vm, self.off_loop)
        self.legacy = LegacyDevices(self.bus, sink, self.parts, self.ram, self._ports, self.ended)
        self.on_eoi = self.legacy.ioapic.eoi
        self._pins = IntxPins(self.legacy.ioapic)

    def _units(self, name: str, port: int, count: int, present: int) -> UnitRegisters:
        from aiovmm.devices.hotplug.units import UnitRegisters  # for machines of which something comes and goes

        registers = UnitRegisters(count, present)
        self.bus.add(Range(Space.PIO, port, count, registers, name, registers.fast))
        return registers

    def add_pci(self, root: PciRoot) -> None:
        """The configuration ports, and those that tell of slots."""
        root.add_config_ports(lambda: self.ended(ExitReason.REBOOT, "reset by port 0xcf9"))
        assert self._ports.slots is not None
        self.slots = slots = SlotRegisters(len(root.segments))
        self.bus.add(Range(Space.PIO, self._ports.slots, slots.fast.size, slots, "pci slots", slots.fast))

    def load(self, memory: GuestMemory) -> None:
        """By the kernel's own protocol."""
        from aiovmm.boot.x86_64 import KernelImage, setup_linux

        config, kernel = self.parts.config, self.parts.kernel
        assert isinstance(kernel, KernelImage), "it was loaded on this host"
        self._memory = memory
        if config.platform.has_identity:
            from aiovmm.machine.x86_64.identity import write_smbios

            write_smbios(memory, config, self.ram)
        kernel.load_into(memory)
        state = setup_linux(memory, kernel, config.cmdline, config.payload.initramfs, self.ram)
        self.vcpus, self._cpuids = create_vcpus(self._vm, self._processor, state)
        self._clock = GuestClock(self._vm, self._cpuids[0])

    def describe(self, memory: GuestMemory, root: PciRoot, iommu: MachineIommu | None) -> Callable[[], None] | None:
        """ACPI and the MP table, which are made once for all guests that are alike."""
        config = self.parts.config
        numa: tuple[NumaNode, ...] = ()
        if config.numa:
            from aiovmm.machine.x86_64.numa import numa_nodes

            numa = numa_nodes(config, self.ram, self.functions)
        end = self.device_memory_start
        machine = describe(config, self.legacy, self._ports, root.segments, iommu, end, numa)
        if machine.made is None:
            return partial(write_tables, memory, machine)
        write_tables(memory, machine)
        return None

    def restore(self, memory: GuestMemory, restored: Restored) -> None:
        """vCPUs, clocks."""
        self._memory = memory
        from aiovmm.machine.x86_64.saved import make_processors

        made = make_processors(restored, self.parts.open_kvm(), self._vm, self.parts.config.cpus)
        self.vcpus, self._cpuids, self._clock, self._held = made

    async def restore_devices(self, restored: Restored) -> None:
        """On ports, and the I/O APIC."""
        fields = Fields(restored.state, "machine").fields("devices")
        assert self.slots is not None, "there is PCI"
        self.slots.load(fields.state("slots"))
        for name, registers in self._hot_units():
            registers.load(fields.state(name))
        await self.legacy.load(fields.state("legacy"))

    def unsuspend_devices(self) -> None:
        """The clock, the serial port, interrupts. And the guest is told that it is another now: Linux then makes new random
        numbers."""
        self.legacy.unsuspend()
        self.legacy.ioapic.hear_of_ends(self._held)
        write_generation(self._memory)
        self.legacy.ged.notify(GedEvent.VM_GENERATION)

    # -- while it is there

    def stand_still(self) -> None:
        """kvm-clock, with them."""
        self._clock.stop(self.vcpus)

    def go_on(self) -> None:
        """kvm-clock, from where it stood."""
        self._clock.start()

    def save(self) -> State:
        """vCPUs, clocks."""
        from aiovmm.machine.x86_64.saved import save_processors  # for machines that are saved

        processors = save_processors(self.parts.open_kvm(), self._vm, self._clock, self.vcpus, self._cpuids)
        return {"address_bits": self.address_bits, "processors": processors}

    def save_devices(self) -> State:
        """On ports, and the I/O APIC."""
        assert self.slots is not None, "there is PCI"
        state: State = {"legacy": self.legacy.save(), "slots": self.slots.save()}
        return state | {name: registers.save() for name, registers in self._hot_units()}

    def _hot_units(self) -> list[tuple[str, UnitRegisters]]:
        there = ("processors", self.processors), ("modules", self.modules)
        return [(name, registers) for name, registers in there if registers is not None]

    def message(self, address: int, data: int, place: Place) -> Message | None:
        """To local APICs."""
        return message_for_kvm(address, data, place)

    def intx_line(self, ended: Callable[[], None], place: Place) -> IntxLine:
        """A pin of the I/O APIC."""
        return self._pins.line(ended, place.slot)

    def press_power_button(self) -> None:
        """By ACPI."""
        self.legacy.ged.press_power_button()

    def slots_changed(self) -> None:
        """By ACPI."""
        self.legacy.ged.notify(GedEvent.PCI)

    def processors_changed(self) -> None:
        """By ACPI."""
        self.legacy.ged.notify(GedEvent.CPU)

    def modules_changed(self) -> None:
        """By ACPI."""
        self.legacy.ged.notify(GedEvent.MEMORY)

    async def add_processor(self, index: int) -> Vcpu:
        """By KVM, or one that was there before."""
        vcpu, cpuid = await add_vcpu(self._vm, self._processor, index, self.off_loop, self._parked.pop(index, None))
        self.vcpus.append(vcpu)
        self._cpuids.append(cpuid)
        return vcpu

    def drop_processor(self, vcpu: Vcpu) -> None:
        """KVM keeps it."""
        at = self.vcpus.index(vcpu)
        self._parked[vcpu.index] = self._cpuids[at]
        del self.vcpus[at], self._cpuids[at]

    def judge(self, index: int, final: FinalExit) -> Finding | Callable[[], Finding] | None:
        """A triple fault resets a PC; KVM may not know an instruction."""
        if isinstance(final, Shutdown):
            return triple_fault(self._memory, self.ram, self.vcpus, index)
        if isinstance(final, InternalError) and final.suberror == EMULATION:
            return partial(emulation_failed, f"vCPU {index}: {final}")
        return None

    def close(self) -> None:
        """The clock's timers, the console off the serial port."""
        if hasattr(self, "legacy"):
            self.legacy.close()
