"""What an architecture makes of a machine: its memory map, processors, interrupt controller, the devices that are not on PCI, and
what firmware would tell of them. `assembly.Machine` holds the order in which they are built; this is the other half.

    examine    what the host's processor can                              in a thread
    set_up     what KVM has to make before any device                     in a thread
    load       the kernel, and all processors                             in the same
    add_devices, plan_pci, add_pci, describe                              on the loop
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from aiovmm.bus import Bus
from aiovmm.config import VMConfig
from aiovmm.devices.hotplug.slots import SlotRegisters
from aiovmm.kvm import FinalExit, Kvm, Vcpu, VmFd
from aiovmm.lifecycle import ExitReason
from aiovmm.machine.halting import Halting
from aiovmm.machine.interrupts import Message, OffLoop
from aiovmm.machine.iommu import MachineIommu
from aiovmm.machine.parts import MachineParts
from aiovmm.memory import GuestMemory
from aiovmm.pci.plan import SegmentPlan
from aiovmm.pci.root import PciAddress, PciRoot
from aiovmm.pci.services import IntxLine, Place

if TYPE_CHECKING:  # of machines that are saved, or restored
    from aiovmm.machine.restored import Restored
    from aiovmm.runtime.plain import State

if TYPE_CHECKING:
    from aiovmm.devices.hotplug.units import UnitRegisters  # for who has some

__all__ = ["Board", "Ended", "Finding"]

Ended = Callable[[ExitReason, str], None]
"""Called when the guest resets or powers off through a device."""

Finding = tuple[ExitReason, str]
"""How a guest ended, and the detail."""


class Board(ABC):
    """Of one machine."""

    takes_processors = False
    """Whether processors can come while the guest runs."""

    has_ports = False
    """Whether its processors have an address space of I/O ports."""

    slots: SlotRegisters | None = None
    """Where a guest is told of devices that come and go, from `add_pci` on; None: nothing there tells it."""

    modules: UnitRegisters | None = None
    """The same of memory modules."""
    processors: UnitRegisters | None = None
    """Where a guest is told of processors that come and go, from `add_devices` on; None: it has what it has."""

    address_bits: int
    """How far guest-physical addresses reach, from `examine` on."""
    on_eoi: Callable[[int], None] | None = None
    """Who is told of the end of an interrupt that KVM does not deal with; see ExitLoop."""

    def __init__(self, parts: MachineParts, bus: Bus, off_loop: OffLoop, halting: Halting) -> None:
        self.parts = parts
        self.bus = bus
        self.off_loop = off_loop
        self.ended: Ended = halting.ended
        self.restored: Restored | None = None
        """What it goes on from, set before `examine`; None: from a kernel."""
        self.ram = self.lay_out(parts.config.ram_size)
        self.functions: Mapping[str, PciAddress] = {}
        """Devices by their ids, for `describe` of a machine with NUMA nodes, which may be theirs."""
        self._halting = halting

    @property
    def vcpus(self) -> list[Vcpu]:
        """All of them, from `load` on."""
        return self._halting.vcpus

    @vcpus.setter
    def vcpus(self, vcpus: list[Vcpu]) -> None:
        self._halting.vcpus = vcpus

    # -- the address map

    @abstractmethod
    def lay_out(self, size: int) -> list[tuple[int, int]]:
        """(gpa, size) of the pieces of a guest's RAM. Raises UsageError for a size that cannot be."""

    @property
    @abstractmethod
    def device_memory_start(self) -> int:
        """The first address that memory of devices (pmem), and 64-bit BARs after it, may have."""

    @property
    @abstractmethod
    def taken(self) -> list[tuple[str, int, int]]:
        """(what, base, size) of what lies neither in memory nor in a PCI window, and is not the bus's to decide on."""

    @property
    @abstractmethod
    def free(self) -> tuple[int, int]:
        """(start, end) of addresses that nothing of the machine's will ever use."""

    @staticmethod
    @abstractmethod
    def messages(config: VMConfig) -> tuple[int, int]:
        """The first and the last address that messages go to, on any machine of this configuration."""

    @abstractmethod
    def plan_pci(self, count: int, start: int) -> list[SegmentPlan]:
        """`count` PCI segments; their 64-bit windows lie between `start` and the end of addresses."""

    # -- building, in this order

    @abstractmethod
    def examine(self, kvm: Kvm) -> None:
        """What its processors will be, and `address_bits`. Raises ConfigError for what the host cannot do, KvmError."""

    @abstractmethod
    def set_up(self, vm: VmFd) -> None:
        """What KVM wants to have before there are devices, in the board's `vm`, which has its memory. Raises KvmError."""

    @abstractmethod
    def add_devices(self) -> None:
        """The devices that are not on PCI, on the bus."""

    @abstractmethod
    def add_pci(self, root: PciRoot) -> None:
        """PCI is there, and no function but its host bridges."""

    @abstractmethod
    def describe(self, memory: GuestMemory, root: PciRoot, iommu: MachineIommu | None) -> Callable[[], None] | None:
        """All functions are plugged in: tell the guest, who is ready to run then. What takes its time is given back, to be done
        in a thread; it raises ConfigError, ImageError, KvmError."""

    @abstractmethod
    def load(self, memory: GuestMemory) -> None:
        """The kernel into memory, and what belongs to it but for the description of devices; all vCPUs in `vcpus`. In a thread.
        Raises ConfigError, ImageError, KvmError."""

    @abstractmethod
    def restore(self, memory: GuestMemory, restored: Restored) -> None:
        """In the place of `load`, right after `set_up`: all vCPUs as they were saved. In a thread. Raises SnapshotError,
        KvmError."""

    @abstractmethod
    async def restore_devices(self, restored: Restored) -> None:
        """Likewise those that are not on PCI, with no timer that runs. Raises SnapshotError."""

    @abstractmethod
    def unsuspend_devices(self) -> None:
        """All has been restored: their timers run."""

    # -- while it is there

    def stand_still(self) -> None:  # noqa: B027
        """All vCPUs are parked. Raises KvmError."""

    def go_on(self) -> None:  # noqa: B027
        """They are about to run: as they were when they were saved, or parked. Raises KvmError."""

    @abstractmethod
    def save(self) -> State:
        """All that `restore` wants to know. In a thread, while the guest stands still, whose memory it may write to: that is read
        after it. Raises SnapshotError, KvmError."""

    @abstractmethod
    def save_devices(self) -> State:
        """Of the devices that are not on PCI. On the loop. Raises SnapshotError."""

    @abstractmethod
    def message(self, address: int, data: int, place: Place) -> Message | None:
        """What KVM is to be told of a message that the function at `place` sends; None if it goes nowhere, which is the guest's
        mistake. Called in any thread."""

    @abstractmethod
    def intx_line(self, ended: Callable[[], None], place: Place) -> IntxLine:
        """See PciServices."""

    @abstractmethod
    def press_power_button(self) -> None:
        """Tell the guest that somebody wants it to power off."""

    @abstractmethod
    def slots_changed(self) -> None:
        """Have the guest look at `slots`, which are there."""

    def processors_changed(self) -> None:
        """Have the guest look at `processors`, which are there."""
        raise NotImplementedError

    def modules_changed(self) -> None:
        """Have the guest look at `modules`, which are there."""
        raise NotImplementedError

    async def add_processor(self, index: int) -> Vcpu:
        """One more in `vcpus`, at the end, which waits to be started by the guest. Raises KvmError."""
        raise NotImplementedError

    def drop_processor(self, vcpu: Vcpu) -> None:
        """It does not run any more, and is none of `vcpus`."""
        raise NotImplementedError

    @abstractmethod
    def judge(self, index: int, final: FinalExit) -> Finding | Callable[[], Finding] | None:
        """What it means that vCPU `index` ended so, or who finds out and may block; None: nothing but that it is an error."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it has, however far it was built: timers, descriptors, the console. Idempotent; before the VM is
        closed."""
