"""The MCFG table: where the configuration space of each PCI segment is (PCI Firmware Specification 3.3, 4.1.2)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from aiovmm.boot.acpi.sdt import sdt
from aiovmm.boot.pci import PciSegment

__all__ = ["mcfg"]

REVISION = 1


def mcfg(segments: Sequence[PciSegment]) -> bytes:
    """One entry of 16 bytes a segment; the base address is that of bus 0 even if the range starts later."""
    entries = (struct.pack("<QHBB4x", s.ecam_base, s.segment, s.start_bus, s.end_bus) for s in segments)
    return sdt("MCFG", REVISION, bytes(8) + b"".join(entries))
