"""Machines that the table tests describe."""

from __future__ import annotations

from dataclasses import replace

from aiovmm.boot.pci import EndpointRange, IntxWire, PciSegment, VirtioIommu, Window
from aiovmm.boot.x86_64.acpi import AcpiConfig, AcpiPorts, Cpu, MemoryModule, NumaNode

ECAM = 0xE8000000
BASE = 0xA0000


def cpus(present: int, most: int) -> tuple[Cpu, ...]:
    return tuple(Cpu(n, n < present) for n in range(most))


def segments(count: int) -> tuple[PciSegment, ...]:
    share = (640 << 20) // max(count, 1) >> 20 << 20
    return tuple(
        PciSegment(
            n,
            ECAM + (n << 20),
            mmio32=Window(0xC0000000 + n * share, share),
            mmio64=Window((n + 1) << 36, 1 << 36),
            io=(Window(0xD00, 0xF300),) if n == 0 else (),
        )
        for n in range(count)
    )


def wired(*wires: tuple[int, int]) -> tuple[PciSegment, ...]:
    """Two segments, the second with these (slot, GSI)."""
    first, second = segments(2)
    return first, replace(second, intx=tuple(IntxWire(*wire) for wire in wires))


IOMMU = VirtioIommu(0, 0x08, (EndpointRange(0, 0x10, 0x1F), EndpointRange(1, 0x08, 0x08)))

NODES = (
    NumaNode(0, (0, 2), ((0, 3 << 30),), ((1, 30),), (0,)),
    NumaNode(1, (1, 3), ((4 << 30, 1 << 40),), ((0, 35), (2, 255)), (1,)),
    NumaNode(2),
    NumaNode(3, initiator=(1, 0x0128)),
)

MACHINES = {
    "NUMA nodes": AcpiConfig(cpus=(Cpu(0), Cpu(1), Cpu(254), Cpu(255, False)), pci_segments=segments(2), numa=NODES),
    "smallest": AcpiConfig(),
    "no serial port": AcpiConfig(serial_ports=(), pci_segments=segments(1)),
    "usual": AcpiConfig(cpus=cpus(2, 4), pci_segments=segments(1)),
    "two segments and an IOMMU": AcpiConfig(cpus=cpus(4, 4), pci_segments=segments(2), iommu=IOMMU),
    "interrupt pins": AcpiConfig(pci_segments=wired((1, 16), (2, 17), (31, 16))),
    "sixteen segments": AcpiConfig(cpus=cpus(1, 255), pci_segments=segments(16), iommu=IOMMU),
    "255 processors": AcpiConfig(cpus=cpus(255, 255)),
    "256 processors": AcpiConfig(cpus=cpus(256, 256), pci_segments=segments(3)),
    "1024 processors to come": AcpiConfig(cpus=cpus(1, 1024), pci_segments=segments(1)),
    "scattered APIC IDs": AcpiConfig(cpus=(Cpu(0), Cpu(254), Cpu(255), Cpu(4000, False))),
    "processors and modules that come and go": AcpiConfig(
        cpus=cpus(2, 300),
        pci_segments=segments(1),
        modules=tuple(MemoryModule((n + 4) << 30, 1 << 30) for n in range(3)),
        ports=AcpiPorts(processors=0x1000, modules=0xB00),
    ),
    "no clock, with i8042": AcpiConfig(rtc=False, i8042=True),
}
