"""What the ACPI tables describe, as plain data. The VM gives the same numbers to its devices.

Ports of the ACPI device, all in I/O space, as the guest uses them (defaults in `AcpiPorts`):

    sleep_reset, 1 byte   RESET_REG, SLEEP_CONTROL_REG and SLEEP_STATUS_REG in one. A write of RESET_VALUE (1) resets.
                          A write with SLP_EN (bit 5) sleeps in the state of SLP_TYP (bits 4:2): S5_VALUE (0x34) is off.
                          Before that, the guest clears WAK_STS by a write of 0x80, which must do nothing. It then reads
                          until WAK_STS (bit 7) is set: reads are zero, the guest is gone by then.
                          Linux resets this way only if told so (reboot=a): on a hardware-reduced machine it tries EFI and
                          then the BIOS (efi_reboot_required, machine_real_restart), which reaches the RTC's shutdown
                          byte first: index 0x8f, then data 0. A machine must take both as a reset.
    pm_timer, 4 bytes     a free-running counter at 3,579,545 Hz, 32 bits wide.
    ged, 1 byte           pending events of the Generic Event Device (`GedEvent`); a read returns and clears them.
                          The GED's interrupt is level-triggered, active high, asserted while an event is pending, so
                          that a button pressed before the guest has a driver for it is not lost.
    slots, 8 bytes a      of each PCI segment, from the first that is described: read, slots to look at (bytes 0 to 3) and slots
    segment               to give up (bytes 4 to 7), a bit each; reading forgets them. A write to bytes 0 to 3 ejects.
    processors, modules,  `UnitBits`. Read: it is PRESENT, is to be looked at (LOOK), is wanted back (LET_GO). Written: the guest
    1 byte for each       has been told of that; it has let go of it (EJECT), taken it, not taken it, kept it.
"""

from __future__ import annotations

from aiovmm.boot.checks import U16, U32, require, require_apart
from aiovmm.boot.pci import IntxWire, PciSegment, VirtioIommu, Window
from aiovmm.runtime.dataclass import dataclass, field

__all__ = [
    "RESET_VALUE",
    "S5_SLEEP_TYPE",
    "S5_VALUE",
    "AcpiConfig",
    "AcpiPorts",
    "Cpu",
    "GedEvent",
    "IoApic",
    "MemoryModule",
    "SerialPort",
    "SlotPorts",
    "UnitBits",
]

RESET_VALUE = 1
S5_SLEEP_TYPE = 5
SLEEP_ENABLE = 1 << 5
S5_VALUE = S5_SLEEP_TYPE << 2 | SLEEP_ENABLE  # what the guest writes to SLEEP_CONTROL_REG (ACPI 6.4, 4.8.3.7)

MAX_CPUS = 4096  # processor objects are named C000 to CFFF
MAX_SERIAL_PORTS = 4


class GedEvent:
    """Bits of the GED's register."""

    CPU = 1
    MEMORY = 2
    PCI = 4
    POWER_BUTTON = 8
    VM_GENERATION = 16


class SlotPorts:
    """The registers of one segment's slots, in bytes: dwords with a bit for each slot."""

    ADDED = EJECT = 0  # read, written
    WANTED = 4
    SIZE = 8


class UnitBits:
    """The register of a processor or memory module that comes and goes: see the head of this file."""

    PRESENT = 0x01
    LOOK = 0x02
    LET_GO = 0x04
    EJECT = 0x08
    TAKEN = 0x10
    REFUSED = 0x20
    KEPT = 0x40


@dataclass(frozen=True)
class AcpiPorts:
    """I/O ports of the ACPI device's registers; `pm_timer` None: there is no PM timer; `slots` None: no slot is for hotplug;
    `processors` and `modules` None: none of them comes or goes."""

    sleep_reset: int = 0x600
    ged: int = 0x604
    pm_timer: int | None = 0x608
    slots: int | None = 0x800
    processors: int | None = None
    modules: int | None = None

    def slots_of(self, index: int) -> int | None:
        """The first port of the segment that is described as number `index`."""
        return None if self.slots is None else self.slots + index * SlotPorts.SIZE

    def __post_init__(self) -> None:
        used: set[int] = set()
        for option, port, size in (
            ("sleep_reset", self.sleep_reset, 1),
            ("ged", self.ged, 1),
            ("pm_timer", self.pm_timer, 4),
        ):
            if port is None:
                continue
            # ACPICA takes port 0 as "this register does not exist".
            require(1 <= port <= U16 - size, f"acpi.ports.{option}", f"{port:#x} is not a port of {size} bytes")
            taken = set(range(port, port + size))
            require(not used & taken, f"acpi.ports.{option}", f"{port:#x} overlaps another register")
            used |= taken


@dataclass(frozen=True)
class Cpu:
    """A processor; its ACPI UID is its place in `AcpiConfig.cpus`. Not `enabled`: absent, but could be brought online."""

    apic_id: int
    enabled: bool = True


@dataclass(frozen=True)
class NumaNode:
    """A node of processors, by their UIDs, and ranges of memory (gpa, size in bytes); `distances` are (node, distance). Or one of
    an `initiator`, a PCI function (segment, bus << 8 | device << 3 | function), alone."""

    number: int
    cpus: tuple[int, ...] = ()
    ram: tuple[tuple[int, int], ...] = ()
    distances: tuple[tuple[int, int], ...] = ()
    pci_segments: tuple[int, ...] = ()
    initiator: tuple[int, int] | None = None


@dataclass(frozen=True)
class MemoryModule:
    """Memory at guest-physical `base` that may be there or not; its register is at its place in `AcpiConfig.modules`."""

    base: int
    size: int


@dataclass(frozen=True)
class IoApic:
    """The I/O APIC: its MMIO address, APIC ID, and the global system interrupt of its pin 0."""

    address: int = 0xFEC00000
    apic_id: int = 0
    gsi_base: int = 0
    pins: int = 24


@dataclass(frozen=True)
class SerialPort:
    """A 16550A: the first of its eight ports and its edge-triggered interrupt."""

    port: int = 0x3F8
    gsi: int = 4


@dataclass(frozen=True)
class AcpiConfig:
    """A machine. Raises ConfigError for one that the tables cannot describe."""

    cpus: tuple[Cpu, ...] = (Cpu(0),)
    modules: tuple[MemoryModule, ...] = ()
    pci_segments: tuple[PciSegment, ...] = ()
    slot_wires: tuple[IntxWire, ...] = ()  # of slots for hotplug, the same in each segment
    serial_ports: tuple[SerialPort, ...] = (SerialPort(),)
    iommu: VirtioIommu | None = None
    numa: tuple[NumaNode, ...] = ()
    ports: AcpiPorts = field(default_factory=AcpiPorts)
    ged_gsi: int = 5
    io_apic: IoApic = field(default_factory=IoApic)
    local_apic_address: int = 0xFEE00000
    vm_generation: int | None = None  # where the generation's identifier is: 16 bytes, at a multiple of 8
    rtc: bool = True
    i8042: bool = False

    def __post_init__(self) -> None:
        self._check_cpus()
        self._check_interrupts()
        numbers = [s.segment for s in self.pci_segments]
        require(len(set(numbers)) == len(numbers), "acpi.pci_segments", "two have the same number")
        require_apart("acpi.pci_segments", [w for s in self.pci_segments for w in s.memory] + self._interrupt_pages())
        require_apart("acpi.pci_segments", [w for s in self.pci_segments for w in s.io])
        if self.vm_generation is not None:
            require(self.vm_generation % 8 == 0, "acpi.vm_generation", "its address must be a multiple of 8")
        self._check_numa()
        if self.iommu is not None:
            require(self.iommu.segment in numbers, "acpi.iommu", f"there is no PCI segment {self.iommu.segment}")

    def _check_numa(self) -> None:
        numbers = [node.number for node in self.numa]
        require(len(set(numbers)) == len(numbers), "acpi.numa", "two nodes have the same number")
        cpus = [uid for node in self.numa for uid in node.cpus]
        require(len(set(cpus)) == len(cpus), "acpi.numa", "a processor is in two nodes")
        require(all(0 <= uid < len(self.cpus) for uid in cpus), "acpi.numa", "a processor is not there")

    def _wires(self) -> list[IntxWire]:
        return [*self.slot_wires, *(wire for segment in self.pci_segments for wire in segment.intx)]

    def _interrupt_pages(self) -> list[Window]:
        return [Window(self.io_apic.address, 1 << 12), Window(self.local_apic_address, 1 << 12)]

    def _check_cpus(self) -> None:
        require(1 <= len(self.cpus) <= MAX_CPUS, "acpi.cpus", f"{len(self.cpus)} is not in 1..{MAX_CPUS}")
        require(self.cpus[0].enabled, "acpi.cpus", "the boot processor must be enabled")
        ids = {c.apic_id for c in self.cpus}
        require(len(ids) == len(self.cpus), "acpi.cpus", "two have the same APIC ID")
        # 0xffffffff is the broadcast ID; 0xff is that of xAPIC, and reaching it needs x2APIC mode anyway.
        require(all(0 <= i < U32 - 1 for i in ids), "acpi.cpus", "an APIC ID must be in 0..0xfffffffe")

    def _check_interrupts(self) -> None:
        count = len(self.serial_ports)
        require(count <= MAX_SERIAL_PORTS, "acpi.serial_ports", f"{count} are more than {MAX_SERIAL_PORTS}")
        first, last = self.io_apic.gsi_base, self.io_apic.gsi_base + self.io_apic.pins - 1
        for option, gsi in (
            ("acpi.ged_gsi", self.ged_gsi),
            *(("acpi.serial_ports.gsi", s.gsi) for s in self.serial_ports),
            *(("acpi.pci_segments.intx", wire.gsi) for wire in self._wires()),
        ):
            require(first <= gsi <= last, option, f"GSI {gsi} is not a pin of the I/O APIC ({first}..{last})")
        taken = {s.gsi for s in self.serial_ports}
        require(self.ged_gsi not in taken, "acpi.ged_gsi", f"GSI {self.ged_gsi} belongs to a serial port")
        edges = taken | {self.ged_gsi}
        for wire in self._wires():
            require(wire.gsi not in edges, "acpi.pci_segments.intx", f"GSI {wire.gsi} is not PCI's to share")
        for serial in self.serial_ports:
            require(0 < serial.port <= U16 - 8, "acpi.serial_ports", f"{serial.port:#x} is not a port")
