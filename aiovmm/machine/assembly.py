"""A machine: built in order, torn down in reverse, whatever fails on the way.

Order: guest memory, KVM VM with the memory of devices (pmem) and what the board wants there before any device, bus, the board's
devices, PCI with virtio devices, tables and kernel into memory with vCPUs that are ready to run, exit loop. Each step pushes its
undoing on a stack before the next one begins. What is an architecture's is done by its `Board`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from aiovmm.bus import Bus, Range
from aiovmm.kvm import ExitLoop, Vcpu, VmFd
from aiovmm.machine.architecture import board_of_host
from aiovmm.machine.device_memory import has_device_memory, map_device_memory
from aiovmm.machine.guest_memory import make_memory
from aiovmm.machine.halting import Halting
from aiovmm.machine.iommu import machine_iommu
from aiovmm.machine.owner import MachineOwner
from aiovmm.machine.parts import MachineParts
from aiovmm.machine.pci import KvmPciServices, PciBuses, start_of_bars
from aiovmm.machine.plugging import MachineDevices
from aiovmm.machine.processors import Processors
from aiovmm.machine.verdict import Verdict
from aiovmm.memory import GuestMemory
from aiovmm.pci.plan import SegmentPlan
from aiovmm.runtime.tasks import finish, in_thread, in_thread_unless, side_by_side
from aiovmm.runtime.undoing import Undoing
from aiovmm.runtime.worker import Worker

if TYPE_CHECKING:
    from aiovmm.machine.restored import Restored

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
        self.devices: MachineDevices
        self._owner = owner
        self.exits: ExitLoop
        self.worker = Worker(f"{parts.config.name}: kvm calls")
        self._halting = Halting(owner)
        self.board = board_of_host()(parts, self.bus, self.worker.submit, self._halting)
        self.board.restored = self._restored = restored
        self.processors = Processors(parts, self.board, self._halting)
        self.end_of_ram: int  # and of what may come to be RAM
        self.end_of_memory: int  # with that of devices, as it was built
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
        if self.parts.ports:
            from aiovmm.machine.own import plug_ports

            plug_ports(self.parts.ports, self.bus, board, plans, self._halting.ended)
        await self._plug_devices(plans)
        if self._restored is None:
            if config.numa:
                board.functions = self.devices.addresses
            rest = board.describe(self.memory, self.pci.root, self.devices.iommu)
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

    def _is_wanted(self) -> bool:
        return not self._given_up

    def _make_vm(self) -> None:
        """Memory, the KVM VM that has it, and what is in it before there are devices. In a thread, in one go, for each change of
        threads waits for a processor; and a guest has it made anew as often as it resets itself."""
        board = self.board
        if self._restored is None:
            self.parts.load_kernel()
        self._stack.push(self._let_go_of_host)
        self.memory, self.end_of_ram = make_memory(self.parts, board, self._restored, self._host, self._is_wanted)
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

    async def _plug_devices(self, plans: list[SegmentPlan]) -> None:
        board = self.board
        services = KvmPciServices(
            self.kvm_vm, self.bus, self.memory, self._owner.create_task, self.worker, board.message, board.intx_line
        )
        self.pci = PciBuses(plans, services, self.parts.bare_segments)
        self._stack.push(self.pci.close)
        board.add_pci(self.pci.root)
        iommu = machine_iommu(self.parts, self.memory)
        if iommu is not None:
            self._stack.push(iommu.close)
        self.devices = MachineDevices(self.parts, self._owner, self.kvm_vm, self.memory, self.pci, services, iommu)
        self._stack.push(self.devices.quiet_hosts)
        await self.devices.plug_all()
        if (pvpanic := self.parts.config.pvpanic) is not None:
            from aiovmm.machine.pvpanic import plug_pvpanic

            plug_pvpanic(self.pci.root, pvpanic, self._owner)

    def at_close(self, work: Callable[[], Awaitable[None]]) -> None:
        """Have that done when the machine is taken apart, before its devices are."""
        self._first.push(work)

    @property
    def vcpus(self) -> list[Vcpu]:
        """All of them; none before they are ready to run, and after `aclose`."""
        return self._halting.vcpus

    def limit_exits(self, rate: int | None) -> None:
        """See VmFd."""
        self.kvm_vm.limit_exits(rate)

    def press_power_button(self) -> None:
        """Tell the guest that somebody wants it to power off."""
        self.board.press_power_button()

    async def aclose(self) -> None:
        """Stop and take everything apart. Idempotent."""
        try:
            await self.processors.stop()
        finally:
            try:
                await self._first.aclose()
            finally:
                self._halting.vcpus = []
                await self._stack.aclose()


def _device_failed(owner: MachineOwner, rng: Range, error: Exception) -> None:
    owner.device_failed(rng.name, error)
