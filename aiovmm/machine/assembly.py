"""A machine: built in order, torn down in reverse, whatever fails on the way.

Order: guest memory, KVM VM with the memory of devices (pmem) and what the board wants there before any device, bus, the board's
devices, PCI with virtio devices, tables and kernel into memory with vCPUs that are ready to run, exit loop. Each step pushes its
undoing on a stack before the next one begins. What is an architecture's is done by its `Board`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from aiovmm.bus import Bus, Range, Space
from aiovmm.config import CoreScheduling, HotplugMethod
from aiovmm.errors import ConfigError
from aiovmm.kvm import ExitLoop, Vcpu, VmFd
from aiovmm.kvm.exitloop import TURN
from aiovmm.kvm.vcpu import ALONE
from aiovmm.lifecycle import ExitReason
from aiovmm.machine.architecture import board_of_host
from aiovmm.machine.device_memory import has_device_memory, map_device_memory
from aiovmm.machine.halting import Halting
from aiovmm.machine.iommu import MachineIommu, machine_iommu
from aiovmm.machine.owner import MachineOwner
from aiovmm.machine.parts import MachineParts
from aiovmm.machine.pci import KvmPciServices, PciBuses, start_of_bars
from aiovmm.machine.verdict import Verdict
from aiovmm.memory import GuestMemory
from aiovmm.pci.plan import SegmentPlan
from aiovmm.pci.root import PciAddress
from aiovmm.runtime.tasks import finish, in_thread, in_thread_unless, side_by_side
from aiovmm.runtime.undoing import Undoing
from aiovmm.runtime.worker import Worker
from aiovmm.virtqueue.device import VirtioDevice

if TYPE_CHECKING:
    from aiovmm.machine.hosts import MachineHosts
    from aiovmm.machine.parts import PluggedDevice
    from aiovmm.machine.passthrough import HostPlace
    from aiovmm.machine.restored import Restored
    from aiovmm.memory import MemoryRegion
    from aiovmm.pci.virtio import VirtioPci
    from aiovmm.virtqueue.config import QueueCounters

__all__ = ["Machine", "Opening"]

Opening = Callable[[], Coroutine[Any, Any, None]]


class Machine:
    """See the module. Made by `build`; `aclose` may be called at any time and any number of times."""

    def __init__(self, parts: MachineParts, owner: MachineOwner, restored: Restored | None = None) -> None:
        self.parts = parts
        self.bus = Bus()
        self.memory: GuestMemory
        self.kvm_vm: VmFd
        self.pci: PciBuses
        self.functions: dict[str, VirtioPci] = {}
        self._owner = owner
        self.exits: ExitLoop
        self._iommu: MachineIommu | None = None
        self._hosts: MachineHosts | None = None  # devices of the host, once there are any
        self.worker = Worker(f"{parts.config.name}: kvm calls")
        self._halting = Halting(owner)
        self.board = board_of_host()(parts, self.bus, self.worker.submit, self._halting)
        self.board.restored = self._restored = restored
        self.end_of_ram: int  # and of what may come to be RAM
        self.end_of_memory: int  # with that of devices, as it was built
        self._due: list[Vcpu] = []  # that are paused, and have not been started yet
        self._stack = Undoing()
        self._first = Undoing()  # before the processors are gone
        self._host = Undoing()  # KVM's VM and memory, which a thread gives back
        self._given_up = False  # nobody waits for it to be built any more

    @classmethod
    async def build(
        cls,
        parts: MachineParts,
        owner: MachineOwner,
        restored: Restored | None = None,
        opening: Opening | None = None,
    ) -> Machine:
        """A machine that is ready to start, at its kernel's first instruction or where another one stood. `opening` is to be done
        before its devices are plugged in. Raises ConfigError, ImageError, SnapshotError, HostError, with nothing left behind."""
        machine = cls(parts, owner, restored)
        try:
            await machine._build(opening)
        except BaseException:
            await finish(machine.aclose())
            raise
        return machine

    async def _build(self, opening: Opening | None) -> None:
        config, board = self.parts.config, self.board
        await self._make_host_part(opening)
        end = self.end_of_memory
        self.kvm_vm.name = config.name
        if self.parts.exits_limit is not None:
            self.limit_exits(self.parts.exits_limit)
        board.add_devices()
        segments = config.platform.num_pci_segments
        plans = board.plan_pci(segments, start_of_bars(segments, end, board.address_bits))
        self._plug_ports(plans)
        await self._plug_devices(plans)
        if self._restored is None:
            if config.numa:
                board.functions = self._functions_by_id()
            rest = board.describe(self.memory, self.pci.root, self._iommu)
            if rest is not None:
                await in_thread(f"{config.name}: describe", rest)
        else:
            from aiovmm.machine.standstill import restore  # for machines that do not boot

            await restore(self, self._restored)
        verdict = Verdict(config.name, self.memory, board.judge, self._halting, self._owner)
        self.exits = ExitLoop(
            self.kvm_vm,
            self.bus,
            on_exit=verdict.vcpu_ended,
            on_device_error=partial(_device_failed, self._owner),
            on_eoi=board.on_eoi,
            on_memory_lost=verdict.memory_lost,
            on_failure=verdict.exits_lost,
            account=self.parts.account,
        )
        self._stack.push(self.exits.close)
        self.exits.open()  # behind all that comes to the bus: it publishes each change

    async def _make_host_part(self, opening: Opening | None) -> None:
        """Memory and VM, and meanwhile what is to be opened for devices, but for memory that these bring."""
        making = in_thread_unless(self._give_up, f"{self.parts.config.name}: make memory", self._make_vm)
        if opening is None:
            await making
        elif has_device_memory(self.parts.plugged):
            try:
                await opening()
            except BaseException:
                making.close()
                raise
            await making
        else:
            await side_by_side(opening(), making)

    def _give_up(self) -> None:
        self._given_up = True

    def _make_vm(self) -> None:
        """Memory, the KVM VM that has it, and what is in it before there are devices. In a thread, in one go, for each change of
        threads waits for a processor; and a guest has it made anew as often as it resets itself."""
        board = self.board
        if self._restored is None:
            self.parts.load_kernel()
        self._stack.push(self._let_go_of_host)
        self._make_memory()
        kvm = self.parts.open_kvm()
        board.examine(kvm)
        cpus = self.parts.config.cpus
        most = cpus.max if cpus.max is not None and board.takes_processors else cpus.boot
        self.kvm_vm = vm = kvm.create_vm(most)
        self._host.push(vm.close)
        self._stack.push(self.worker.aclose)
        self._stack.push(board.close)
        limit = 1 << board.address_bits
        self.end_of_memory = map_device_memory(self.memory, self.parts.plugged, self.end_of_ram, limit)
        vm.set_memory(self.memory)
        board.set_up(vm)
        if self._restored is None:
            board.load(self.memory)
        else:
            board.restore(self.memory, self._restored)

    async def _let_go_of_host(self) -> None:
        await in_thread(f"{self.parts.config.name}: unmap", self._host.close)

    def _make_memory(self) -> None:
        m, ram = self.parts.config.memory, self.board.ram
        self.end_of_ram = self.board.device_memory_start
        later: list[tuple[int, int]] = []
        if m.hotplug_size:
            from aiovmm.machine.hotplug.places import at_start, place_of

            later = at_start(m, self.end_of_ram)
            self.end_of_ram = sum(place_of(m, self.end_of_ram))
        zones = [zone for zone in self.parts.config.memory_zones if zone.hotplug_size]
        if zones:
            from aiovmm.machine.hotplug.places import places_in_zones

            later = places_in_zones(zones, self.end_of_ram)
            self.end_of_ram = sum(later[-1])
        if self._restored is None:
            self.memory = self._new_memory(ram)
        else:
            self.memory = self._restored.map_memory([*ram, *later])
        self._host.push(self.memory.close)
        if zones and self._restored is None:
            from aiovmm.machine.zones import grow

            grow(self.memory, self.parts.config, zones, later)
        elif later and self._restored is None:
            from aiovmm.machine.hotplug.places import add_memory

            add_memory(self.memory, m, later)
        if later and m.hotplug_method is HotplugMethod.VIRTIO_MEM:
            from aiovmm.machine.hotplug.memory import power_on

            power_on(self.parts.plugged, self.memory, [start for start, _ in later])

    def _new_memory(self, ram: list[tuple[int, int]]) -> GuestMemory:
        m = self.parts.config.memory
        needed = any(p.device.shares_memory for p in self.parts.plugged)
        if self.parts.config.memory_zones:
            return self._in_zones(ram, needed)
        shared = needed or m.hugepages if m.shared is None else m.shared
        if m.mergeable and shared:
            raise ConfigError("memory.mergeable", "does not go with devices that share memory with another process")
        return GuestMemory.create(
            ram,
            shared=shared,
            hugepages=m.hugepages,
            prefault=m.prefault,
            thp=m.wants_huge_pages,
            mergeable=m.mergeable,
            hugepage_size=m.hugepage_size,
            reserve=m.reserve,
            wanted=lambda: not self._given_up,
        )

    def _in_zones(self, ram: list[tuple[int, int]], needs_sharing: bool) -> GuestMemory:
        from aiovmm.machine.zones import add_zones

        memory = GuestMemory()
        wanted = lambda: not self._given_up  # noqa: E731 - as above
        try:
            add_zones(memory, self.parts.config, ram, needs_sharing=needs_sharing, wanted=wanted)
        except BaseException:
            memory.close()
            raise
        return memory

    def _plug_ports(self, plans: list[SegmentPlan]) -> None:
        """The embedder's own. Raises ConfigError or UsageError where something is there already, or may come to be."""
        if not self.parts.ports:
            return
        from aiovmm.machine.own import refuse_taken

        start = self.board.device_memory_start
        memory = [*self.board.ram, (start, plans[0].mmio64.base - start)]  # of devices too
        taken = [("the guest's memory", base, size) for base, size in memory]
        taken += [("a PCI window", window.base, window.size) for plan in plans for window in plan.windows]
        refuse_taken(self.parts.ports, [*taken, *self.board.taken], self.board.free)
        for port in self.parts.ports:
            if port.space is Space.PIO and not self.board.has_ports:
                raise ConfigError(
                    "ports", f"{port.name} is at a port, which this machine has not", "give it an address"
                )
            port._end = partial(self._halting.ended, ExitReason.SHUTDOWN)
            port.reset()
            self.bus.add(Range(port.space, port.base, port.size, port, port.name))

    async def _plug_devices(self, plans: list[SegmentPlan]) -> None:
        create_task, board = self._owner.create_task, self.board
        self._services = KvmPciServices(
            self.kvm_vm, self.bus, self.memory, create_task, self.worker, board.message, board.intx_line
        )
        self.pci = PciBuses(plans, self._services, self.parts.bare_segments)
        self._stack.push(self.pci.close)
        board.add_pci(self.pci.root)
        self._iommu = machine_iommu(self.parts, self.memory)
        if self._iommu is not None:
            self._stack.push(self._iommu.close)
        for segment, slot in self.parts.chosen_slots():
            self.pci.root.reserve(segment, slot)
        last = [p for p in self.parts.plugged if self._iommu is not None and p.device is self._iommu.device]
        for plugged in [p for p in self.parts.plugged if p not in last]:
            self._plug(plugged)
        self._stack.push(self._quiet_hosts)
        for place in self.parts.hosts:
            await self.plug_host(place)
        for plugged in last:
            self._plug(plugged)
        if (pvpanic := self.parts.config.pvpanic) is not None:
            from aiovmm.machine.pvpanic import plug_pvpanic

            plug_pvpanic(self.pci.root, pvpanic, self._owner)

    def _plug(self, plugged: PluggedDevice) -> None:
        error = partial(_virtio_failed, self._owner, plugged.id)
        self.functions[plugged.id] = self.pci.plug(plugged, error, self._iommu)

    def plug(self, plugged: PluggedDevice) -> PciAddress:
        """Put in one more device, which is open. Raises UsageError."""
        self._plug(plugged)
        return self.address(plugged.id)

    async def plug_host(self, place: HostPlace) -> PciAddress:
        """The same with a device of the host, which is open. Raises HostError, UsageError."""
        if self._hosts is None:
            from aiovmm.devices.virtio.mem import MemDevice
            from aiovmm.machine.hosts import MachineHosts  # for machines that have some

            name, failed = self.parts.config.name, self._owner.device_failed
            vm, memory = self.kvm_vm, self.memory
            growing = [p.device for p in self.parts.plugged if isinstance(p.device, MemDevice)]
            self._hosts = MachineHosts(name, self.pci.root, self._services, vm, memory, failed, self._iommu, growing)
        return await self._hosts.plug(place)

    async def _quiet_hosts(self) -> None:
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

    @property
    def iommu(self) -> MachineIommu | None:
        """What stands between devices and memory, if anything does."""
        return self._iommu

    def address(self, id_: str) -> PciAddress:
        """Where a device is. Raises KeyError."""
        if id_ in (hosts := self._host_addresses):
            return hosts[id_]
        place = self.functions[id_].place
        return PciAddress(place.segment, place.slot)

    def _functions_by_id(self) -> dict[str, PciAddress]:
        """With devices of the host."""
        return {id_: self.address(id_) for id_ in self.functions} | self._host_addresses

    @property
    def _host_addresses(self) -> dict[str, PciAddress]:
        return self._hosts.addresses if self._hosts is not None else {}

    async def unplug(self, id_: str) -> None:
        """Take a device out: nothing of it touches memory any more. It stays open. Raises KeyError, HostError."""
        if self._hosts is not None and id_ in self._hosts.addresses:
            await self._hosts.unplug(id_)
            return
        address = self.address(id_)
        del self.functions[id_]
        await self.pci.unplug(address, self._iommu)

    def at_close(self, work: Callable[[], Awaitable[None]]) -> None:
        """Have that done when the machine is taken apart, before its devices are."""
        self._first.push(work)

    def queue_counters(self, id_: str) -> list[QueueCounters]:
        """Of the queues of a virtio device that is served here; none of one that another process serves."""
        from aiovmm.virtqueue.runner import DeviceRunner

        backend = self.functions[id_].backend if id_ in self.functions else None
        return backend.counters() if isinstance(backend, DeviceRunner) else []

    # -- running

    @property
    def vcpus(self) -> list[Vcpu]:
        """All of them; none before they are ready to run, and after `aclose`."""
        return self._halting.vcpus

    async def start(self, *, paused: bool = False) -> None:
        """Let all vCPUs run, or, `paused`, as soon as they are resumed, which starts their threads. Where there are many the
        event loop has turns between them, and the machine may be halted in one: then no instruction is run. Raises
        HostError."""
        with self._halting.starting():
            await self._start(paused)

    async def _start(self, paused: bool) -> None:
        end = perf_counter() + TURN
        for vcpu in reversed(self.vcpus):  # the boot processor last: the others wait for its start-up message
            if perf_counter() >= end:
                await asyncio.sleep(0)
                end = perf_counter() + TURN
            if self.halted:
                return
            if paused:
                await vcpu.pause()  # returns at once, for it does not run
                self._due.append(vcpu)
            else:
                self._run(vcpu)

    def _run(self, vcpu: Vcpu) -> None:
        cpus = self.parts.config.cpus
        apart = cpus.core_scheduling
        vcpu.start(cpus.vcpu_nice, core=0 if apart is CoreScheduling.OFF else self._core(apart))
        if cpus.affinity and (hosts := dict(cpus.affinity).get(vcpu.index)):
            vcpu.run_on(hosts)

    def _core(self, what: CoreScheduling) -> int:
        """For the next vCPU. Raises HostError where there is no core scheduling, and is need of it."""
        from aiovmm.kvm import core_scheduling  # for who asks

        if not core_scheduling.is_needed():
            return 0
        cores = [vcpu.core for vcpu in self.vcpus if vcpu.core] if what is CoreScheduling.VM else []
        return cores[0] if cores else ALONE

    async def add_processor(self, index: int) -> None:
        """One more vCPU, which runs and waits for the guest to start it. Raises KvmError, with none there."""
        vcpu = await self.board.add_processor(index)
        try:
            self._run(vcpu)
        except BaseException:
            await self.remove_processor(index)
            raise

    async def remove_processor(self, index: int) -> None:
        """End the last vCPU's thread, from whatever it does."""
        vcpu = self.vcpus[index]
        vcpu.stop()
        if vcpu.needs_end:
            await vcpu.join()
        vcpu.resume()  # from a pause that came meanwhile, or it would be in force when it is used again
        self.board.drop_processor(vcpu)

    async def pause(self) -> None:
        """Park all vCPUs, or, if that fails or is cancelled, none."""
        try:
            await asyncio.gather(*(vcpu.pause() for vcpu in self.vcpus))
            self.board.stand_still()
        except BaseException:
            self.resume()
            raise

    def resume(self) -> None:
        """Let them go on. Raises HostError if one was to be started by that, and cannot."""
        self.board.go_on()
        for vcpu in self.vcpus:
            vcpu.resume()
        due, self._due = self._due, []
        for vcpu in due if not self.halted else ():
            self._run(vcpu)

    def limit_exits(self, rate: int | None) -> None:
        """See VmFd."""
        self.kvm_vm.limit_exits(rate)

    def press_power_button(self) -> None:
        """Tell the guest that somebody wants it to power off."""
        self.board.press_power_button()

    @property
    def halted(self) -> bool:
        """Whether its guest runs no further instruction: it has ended, or asked for a reset."""
        return self._halting.halted

    def halt(self) -> None:
        """Ask all vCPU threads to end, without waiting for them, for good. Idempotent."""
        self._due.clear()
        self._halting.halt()

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
            try:
                await self._first.aclose()
            finally:
                self._halting.vcpus = []
                await self._stack.aclose()


def _device_failed(owner: MachineOwner, rng: Range, error: Exception) -> None:
    owner.device_failed(rng.name, error)


def _virtio_failed(owner: MachineOwner, id_: str, _device: VirtioDevice, error: Exception) -> None:
    owner.device_failed(id_, error)
