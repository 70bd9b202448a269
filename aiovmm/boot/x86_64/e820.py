"""The memory map given to the guest: e820 entries (ACPI 6.5, section 15, "Address Range Types"). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiovmm.boot.x86_64 import layout
from aiovmm.runtime.dataclass import dataclass

__all__ = ["RAM", "RESERVED", "E820Entry", "memory_map"]

RAM = 1
RESERVED = 2


@dataclass(frozen=True)
class E820Entry:
    """`size` bytes at guest-physical `address`; `type` 1 is RAM, 2 reserved, 3 ACPI tables."""

    address: int
    size: int
    type: int


DEFAULT_RESERVED = ((layout.ECAM, layout.ECAM_SIZE),)


def memory_map(
    ram: Iterable[tuple[int, int]], reserved: Sequence[tuple[int, int]] = DEFAULT_RESERVED
) -> list[E820Entry]:
    """Sorted e820 entries of a guest with `ram` ranges (gpa, size).

    The PC's hole from 640 KiB to 1 MiB is reserved: the RSDP and ACPI tables lie in it, and Linux looks there for BIOS
    structures. The ECAM is reserved because Linux uses it only if the memory map or the DSDT says so.
    """
    entries = [E820Entry(gpa, size, RESERVED) for gpa, size in reserved]
    for gpa, size in ram:
        entries += _without_pc_hole(gpa, size)
    return sorted(entries, key=lambda e: e.address)


def _without_pc_hole(gpa: int, size: int) -> list[E820Entry]:
    hole, top = layout.LOW_RAM_END, layout.HIGH_RAM
    end = gpa + size
    if gpa >= top or end <= hole:
        return [E820Entry(gpa, size, RAM)]
    pieces = [(gpa, hole, RAM), (hole, top, RESERVED), (top, end, RAM)]
    return [E820Entry(a, b - a, kind) for a, b, kind in pieces if b > a]
