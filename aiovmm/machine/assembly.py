"""An x86-64 machine: built in order, torn down in reverse, whatever fails on the way.

Order: guest memory, KVM VM with the memory of devices (pmem) and its split irqchip, bus, legacy devices, PCI with virtio
devices, kernel and tables into memory, vCPUs, exit loop. Each step pushes its undoing on a stack before the next one begins.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from time import perf_counter

from aiovmm.boot.x86_64 import layout, ram_ranges, setup_linux
from aiovmm.boot.x86_64.acpi import AcpiPorts
from aiovmm.bus import Bus, Range
from aiovmm.devices.ioapic import IntxPins
from aiovmm.kvm import ExitLoop, Vcpu, VmFd
from aiovmm.kvm.exitloop import TURN
from aiovmm.lifecycle import ExitReason
from aiovmm.machine.device_memory import map_device_memory
from aiovmm.machine.interrupts import IoApicSink
from aiovmm.machine.iommu import MachineIommu, machine_iommu
from aiovmm.machine.owner import MachineOwner
from aiovmm.machine.parts import MachineParts
from aiovmm.machine.pci import KvmPciServices, PciBuses, plan
from aiovmm.machine.verdict import Verdict
from aiovmm.machine.x86_64.legacy import LegacyDevices
from aiovmm.machine.x86_64.tables import describe, write_tables
from aiovmm.machine.x86_64.vcpus import Processor, create_vcpus
from aiovmm.memory import GuestMemory
from aiovmm.pci.plan import SegmentPlan
from aiovmm.runtime.tasks import finish, in_thread
from aiovmm.runtime.worker import Worker
from aiovmm.virtqueue.device import VirtioDevice

__all__ = ["Machine"]


class Machine:
    """See the module. Made by `build`; `aclose` may be called at any time and any number of times."""

    def __init__(self, parts: MachineParts, owner: MachineOwner) -> None:
        self.parts = parts
        self.bus = Bus()
        self.memory: GuestMemory
        self.kvm_vm: VmFd
        self.pci: PciBuses
        self.legacy: LegacyDevices
        self.vcpus: list[Vcpu] = []
        self._owner = owner
        self._exits: ExitLoop
        self._iommu: MachineIommu | None = None
        self._worker = Worker(f"{parts.config.name}: kvm calls")
        self._halted = self._starting = False
        self._early: tuple[ExitReason, str, BaseException | None] | None = None  # an end that came while it was started
        self._stack = AsyncExitStack()

    @classmethod
    async def build(cls, parts: MachineParts, owner: MachineOwner) -> Machine:
        """A machine that is ready to start. Raises ConfigError, ImageError, HostError, with nothing left behind."""
        machine = cls(parts, owner)
        try:
            await machine._build()
        except BaseException:
            await finish(machine.aclose())
            raise
        return machine

    async def _build(self) -> None:
        config = self.parts.config
        ram = ram_ranges(config.memory.size)
        processor, end = await in_thread(self._make_vm, ram)
        vm = self.kvm_vm
        vm.name = config.name
        self._stack.push_async_callback(self._worker.aclose)
        ports = AcpiPorts()
        self.legacy = LegacyDevices(self.bus, IoApicSink(vm, self._worker.submit), self.parts, ram, ports, self._ended)
        self._stack.callback(self.legacy.close)
        plans = plan(config.platform.num_pci_segments, end, processor.reachable_bits)
        self._plug_ports(ram, plans)
        await self._plug_devices(plans)
        write_tables(self.memory, describe(config.cpus, self.legacy, ports, self.pci.root.segments, self._iommu))
        self.vcpus = await in_thread(self._load, ram, processor)
        verdict = Verdict(self.memory, ram, self.vcpus, self.halt, self._ended, self._owner)
        self._exits = ExitLoop(
            vm,
            self.bus,
            on_exit=verdict.vcpu_ended,
            on_device_error=self._device_error,
            on_eoi=self.legacy.ioapic.eoi,
            on_memory_lost=verdict.memory_lost,
        )
        self._stack.push_async_callback(self._exits.close)
        self._exits.open()

    def _make_vm(self, ram: list[tuple[int, int]]) -> tuple[Processor, int]:
        """Memory, and the KVM VM that has it: the processor that its guests shall see, and the end of all memory. In a thread:
        a guest has it made anew as often as it resets itself."""
        self._make_memory(ram)
        kvm = self.parts.open_kvm()
        processor = Processor.of(kvm, self.parts.config.cpus)
        self.kvm_vm = vm = kvm.create_vm(self.parts.config.cpus.boot)
        self._stack.push_async_callback(in_thread, vm.close)
        vm.set_identity_pages(layout.KVM_IDENTITY_MAP)
        limit = 1 << processor.reachable_bits
        end = map_device_memory(self.memory, self.parts.plugged, layout.end_of_ram(ram), limit)
        vm.set_memory(self.memory)
        vm.split_irqchip()
        return processor, end

    def _make_memory(self, ram: list[tuple[int, int]]) -> None:
        m = self.parts.config.memory
        needed = any(p.device.shares_memory for p in self.parts.plugged)
        shared = needed or m.hugepages if m.shared is None else m.shared
        self.memory = GuestMemory.create(ram, shared=shared, hugepages=m.hugepages, prefault=m.prefault, thp=m.thp)
        self._stack.push_async_callback(in_thread, self.memory.close)

    def _plug_ports(self, ram: list[tuple[int, int]], plans: list[SegmentPlan]) -> None:
        """The embedder's own. Raises ConfigError or UsageError where something is there already, or may come to be."""
        if not self.parts.ports:
            return
        from aiovmm.machine.own import refuse_taken

        refuse_taken(self.parts.ports, ram, plans)
        for port in self.parts.ports:
            port._end = partial(self._ended, ExitReason.SHUTDOWN)
            port.reset()
            self.bus.add(Range(port.space, port.base, port.size, port, port.name))

    async def _plug_devices(self, plans: list[SegmentPlan]) -> None:
        intx = IntxPins(self.legacy.ioapic)
        services = KvmPciServices(self.kvm_vm, self.bus, self.memory, self._owner.create_task, intx, self._worker)
        self.pci = PciBuses(plans, services, lambda: self._ended(ExitReason.REBOOT, "reset by port 0xcf9"))
        self._stack.push_async_callback(self.pci.close)
        self._iommu = machine_iommu(self.parts, self.memory)
        if self._iommu is not None:
            self._stack.callback(self._iommu.close)
        for segment, slot in self.parts.chosen_slots():
            self.pci.root.reserve(segment, slot)
        last = [p for p in self.parts.plugged if self._iommu is not None and p.device is self._iommu.device]
        for plugged in [p for p in self.parts.plugged if p not in last]:
            self.pci.plug(plugged, partial(self._virtio_error, plugged.id), self._iommu)
        if (passthrough := self.parts.passthrough) is not None:
            inside = passthrough.plugged_in(
                self.pci.root, services, self.kvm_vm, self.memory, self._owner.device_failed, self._iommu
            )
            await self._stack.enter_async_context(inside)
        for plugged in last:
            self.pci.plug(plugged, partial(self._virtio_error, plugged.id), self._iommu)

    def _load(self, ram: list[tuple[int, int]], processor: Processor) -> list[Vcpu]:
        """Kernel, initramfs and boot parameters into memory, and the vCPUs that will run them. In a thread: the files may have to
        be read from disk, and there may be many vCPUs."""
        config, kernel = self.parts.config, self.parts.kernel
        kernel.load_into(self.memory)
        state = setup_linux(self.memory, kernel, config.cmdline, config.payload.initramfs, ram)
        return create_vcpus(self.kvm_vm, config.cpus, processor, state)

    # -- running

    async def start(self, *, paused: bool = False) -> None:
        """Let all vCPUs run, or have them stand at their first instruction. Where there are many the event loop has turns between
        them, and the machine may be halted in one: then no instruction is run. Raises HostError."""
        self._starting = True
        try:
            await self._start(paused)
        finally:
            self._starting = False
            if self._early is not None:
                asyncio.get_running_loop().call_soon(self._owner.guest_ended, *self._early)

    async def _start(self, paused: bool) -> None:
        affinity = dict(self.parts.config.cpus.affinity)
        end = perf_counter() + TURN
        for vcpu in reversed(self.vcpus):  # the boot processor last: the others wait for its start-up message
            if perf_counter() >= end:
                await asyncio.sleep(0)
                end = perf_counter() + TURN
            if self._halted:
                return
            if paused:
                await vcpu.pause()  # returns at once, for it does not run
            vcpu.start()
            if hosts := affinity.get(vcpu.index):
                vcpu.run_on(hosts)

    async def pause(self) -> None:
        """Park all vCPUs, or, if that fails or is cancelled, none."""
        try:
            await asyncio.gather(*(vcpu.pause() for vcpu in self.vcpus))
        except BaseException:
            self.resume()
            raise

    def resume(self) -> None:
        """Let them go on."""
        for vcpu in self.vcpus:
            vcpu.resume()

    def press_power_button(self) -> None:
        """Tell the guest by ACPI that somebody wants it to power off."""
        self.legacy.ged.press_power_button()

    def halt(self) -> None:
        """Ask all vCPU threads to end, without waiting for them, for good. Idempotent."""
        self._halted = True
        for vcpu in self.vcpus:
            vcpu.stop()

    async def stop(self) -> None:
        """End all vCPU threads; devices stay as they are. Idempotent."""
        self.halt()
        for vcpu in self.vcpus:
            if vcpu.needs_end:
                await vcpu.join()

    def cut_off(self) -> None:
        """Stop at once, where nobody serves exits any more: the event loop was closed. It waits for the threads."""
        self.halt()
        for vcpu in self.vcpus:
            if vcpu.needs_end:
                vcpu.on_ended()

    async def aclose(self) -> None:
        """Stop and take everything apart. Idempotent."""
        try:
            await self.stop()
        finally:
            self.vcpus = []
            await self._stack.aclose()

    # -- what comes from below

    def _ended(self, reason: ExitReason, detail: str, error: BaseException | None = None) -> None:
        self.halt()  # no instruction after the one that did it, on any vCPU
        if self._starting:  # whoever starts it would take that for the end of the machine before
            self._early = self._early or (reason, detail, error)
        else:
            self._owner.guest_ended(reason, detail, error)

    def _device_error(self, rng: Range, error: Exception) -> None:
        self._owner.device_failed(rng.name, error)

    def _virtio_error(self, id_: str, _device: VirtioDevice, error: Exception) -> None:
        self._owner.device_failed(id_, error)
