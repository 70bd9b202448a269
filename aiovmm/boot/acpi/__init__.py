"""ACPI (6.4) as far as it is the same on every machine: AML, the shape of tables, and what they say of PCI."""

from __future__ import annotations

from aiovmm.boot.acpi.config_pci import EndpointRange, IntxWire, PciSegment, VirtioIommu, Window

__all__ = ["EndpointRange", "IntxWire", "PciSegment", "VirtioIommu", "Window"]
