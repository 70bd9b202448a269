"""A machine that the tables cannot describe is refused before anything is built."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiovmm.boot.pci import EndpointRange, IntxWire, PciSegment, VirtioIommu, Window
from aiovmm.boot.x86_64.acpi import S5_VALUE, AcpiConfig, AcpiPorts, Cpu, SerialPort
from aiovmm.errors import ConfigError
from tests.boot.x86_64.acpi.machines import ECAM, cpus, segments

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no processor": (lambda: AcpiConfig(cpus=()), "acpi.cpus"),
    "too many processors": (lambda: AcpiConfig(cpus=cpus(1, 4097)), "acpi.cpus"),
    "absent boot processor": (lambda: AcpiConfig(cpus=(Cpu(0, False),)), "acpi.cpus"),
    "same APIC ID twice": (lambda: AcpiConfig(cpus=(Cpu(1), Cpu(1))), "acpi.cpus"),
    "broadcast APIC ID": (lambda: AcpiConfig(cpus=(Cpu(0xFFFFFFFF),)), "acpi.cpus"),
    "GED pin out of range": (lambda: AcpiConfig(ged_gsi=24), "acpi.ged_gsi"),
    "GED on the serial port's pin": (lambda: AcpiConfig(ged_gsi=4), "acpi.ged_gsi"),
    "serial pin out of range": (lambda: AcpiConfig(serial_ports=(SerialPort(gsi=24),)), "acpi.serial_ports"),
    "serial port out of range": (lambda: AcpiConfig(serial_ports=(SerialPort(port=0xFFFF),)), "acpi.serial_ports"),
    "five serial ports": (lambda: AcpiConfig(serial_ports=(SerialPort(),) * 5), "acpi.serial_ports"),
    "port 0": (lambda: AcpiPorts(ged=0), "acpi.ports.ged"),
    "port beyond the last": (lambda: AcpiPorts(pm_timer=0xFFFD), "acpi.ports.pm_timer"),
    "overlapping registers": (lambda: AcpiPorts(ged=0x60A), "acpi.ports.pm_timer"),
    "same segment twice": (
        lambda: AcpiConfig(pci_segments=(PciSegment(0, ECAM), PciSegment(0, ECAM + (1 << 20)))),
        "acpi.pci_segments",
    ),
    "overlapping ECAM": (
        lambda: AcpiConfig(pci_segments=(PciSegment(0, ECAM, end_bus=1), PciSegment(1, ECAM + (1 << 20)))),
        "acpi.pci_segments",
    ),
    "window over ECAM": (
        lambda: AcpiConfig(pci_segments=(PciSegment(0, ECAM, mmio32=Window(0xC0000000, 641 << 20)),)),
        "acpi.pci_segments",
    ),
    "window over the I/O APIC": (
        lambda: AcpiConfig(pci_segments=(PciSegment(0, ECAM, mmio32=Window(0xFEC00000, 1 << 20)),)),
        "acpi.pci_segments",
    ),
    "unaligned ECAM": (lambda: PciSegment(0, ECAM + 4096), "acpi.pci_segments[0]"),
    "ECAM above 4 GiB": (lambda: PciSegment(3, 1 << 32), "acpi.pci_segments[3].ecam"),
    "32-bit window above 4 GiB": (lambda: PciSegment(0, ECAM, mmio32=Window(1 << 32, 4096)), ".mmio32"),
    "empty window": (lambda: PciSegment(0, ECAM, mmio64=Window(1 << 32, 0)), ".mmio64"),
    "ports beyond the last": (lambda: PciSegment(0, ECAM, io=(Window(0xFF00, 0x200),)), ".io"),
    "all ports": (lambda: PciSegment(0, ECAM, io=(Window(0, 0x10000),)), ".io"),
    "segment 256": (lambda: PciSegment(256, ECAM), "acpi.pci_segments[256]"),
    "bus 256": (lambda: PciSegment(0, ECAM, end_bus=256), "acpi.pci_segments[0]"),
    "interrupt pin of slot 32": (lambda: PciSegment(0, ECAM, intx=(IntxWire(32, 16),)), "acpi.pci_segments[0].intx"),
    "a pin wired twice": (lambda: PciSegment(0, ECAM, intx=(IntxWire(1, 16), IntxWire(1, 17))), ".intx"),
    "a pin wired to no pin": (
        lambda: AcpiConfig(pci_segments=(PciSegment(0, ECAM, intx=(IntxWire(1, 24),)),)),
        "acpi.pci_segments.intx",
    ),
    "a pin wired to the serial port's": (
        lambda: AcpiConfig(pci_segments=(PciSegment(0, ECAM, intx=(IntxWire(1, 4),)),)),
        "acpi.pci_segments.intx",
    ),
    "a pin wired to the GED's": (
        lambda: AcpiConfig(pci_segments=(PciSegment(0, ECAM, intx=(IntxWire(1, 5),)),)),
        "acpi.pci_segments.intx",
    ),
    "backward endpoints": (lambda: EndpointRange(0, 9, 8), "acpi.iommu.endpoints"),
    "IOMMU behind itself": (lambda: VirtioIommu(0, 8, (EndpointRange(0, 0, 16),)), "acpi.iommu"),
    "IOMMU on no bus": (lambda: AcpiConfig(iommu=VirtioIommu(0, 8)), "acpi.iommu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_option_named(case: str) -> None:
    make, option = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        make()
    assert option in caught.value.option


def test_the_edges_are_accepted() -> None:
    AcpiConfig(cpus=cpus(1, 4096), ged_gsi=23, pci_segments=(PciSegment(255, 0xFEB00000 - (255 << 20), end_bus=255),))
    AcpiPorts(sleep_reset=1, ged=0xFFFF, pm_timer=0xFFFB)
    assert len(segments(16)) == 16


def test_soft_off_is_what_the_guest_writes() -> None:
    assert S5_VALUE == 0x34
