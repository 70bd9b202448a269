"""ACPI tables of a hardware-reduced x86-64 machine (ACPI 6.4): `build(AcpiConfig(...), base)`."""

from __future__ import annotations

from aiovmm.boot.acpi.config import (
    RESET_VALUE,
    S5_VALUE,
    AcpiConfig,
    AcpiPorts,
    Cpu,
    EndpointRange,
    GedEvent,
    IntxWire,
    IoApic,
    PciSegment,
    SerialPort,
    VirtioIommu,
    Window,
)
from aiovmm.boot.acpi.tables import AcpiImage, build

__all__ = [
    "RESET_VALUE",
    "S5_VALUE",
    "AcpiConfig",
    "AcpiImage",
    "AcpiPorts",
    "Cpu",
    "EndpointRange",
    "GedEvent",
    "IntxWire",
    "IoApic",
    "PciSegment",
    "SerialPort",
    "VirtioIommu",
    "Window",
    "build",
]
