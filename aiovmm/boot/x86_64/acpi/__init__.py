"""ACPI tables of a hardware-reduced x86-64 machine (ACPI 6.4): `build(AcpiConfig(...), base)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.boot.x86_64.acpi.config import (
    RESET_VALUE,
    S5_VALUE,
    AcpiConfig,
    AcpiPorts,
    Cpu,
    GedEvent,
    IoApic,
    MemoryModule,
    NumaNode,
    SerialPort,
)
from aiovmm.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from aiovmm.boot.x86_64.acpi.tables import AcpiImage, build

__all__ = [
    "RESET_VALUE",
    "S5_VALUE",
    "AcpiConfig",
    "AcpiImage",
    "AcpiPorts",
    "Cpu",
    "GedEvent",
    "IoApic",
    "MemoryModule",
    "NumaNode",
    "SerialPort",
    "build",
]

__getattr__ = lazy_names(__name__, {"aiovmm.boot.x86_64.acpi.tables": "AcpiImage build"})  # for machines that boot
