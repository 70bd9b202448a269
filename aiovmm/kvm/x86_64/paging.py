"""Has a guest run user space? Told by the page tables that it runs on: from its first process on there are pages among them that
ring 3 may use, and an idle processor keeps the tables of the process before. A kernel that starts up has none.

Source: Intel SDM vol. 3A, 4.3 to 4.6; AMD64 APM vol. 2, 5.3 and 5.4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from aiovmm.memory import GuestMemory
from aiovmm.runtime.dataclass import dataclass

__all__ = ["Paging", "has_user_pages"]

_PE, _PG = 1 << 0, 1 << 31  # CR0
_PAE, _LA57 = 1 << 5, 1 << 12  # CR4
_LMA = 1 << 10  # EFER
_PRESENT, _USER, _LARGE = 1 << 0, 1 << 2, 1 << 7
_ADDRESS = 0x000F_FFFF_FFFF_F000
_MOST_TABLES = 64  # read in all; a process shows itself within five, and a guest may have tied its tables in knots


@dataclass(frozen=True)
class Paging:
    """The registers that say where page tables are, and of which of the four kinds."""

    cr0: int = 0
    cr3: int = 0
    cr4: int = 0
    efer: int = 0


def has_user_pages(memory: GuestMemory, ram: Sequence[tuple[int, int]], paging: Paging) -> bool:
    """Whether ring 3 may use any page in the lower part of the address space, which is that of processes (the upper has pages of
    Linux's own that processes may read); true as well where that would take too long to find out. Tables are looked for in
    `ram`, (gpa, size), alone: a file behind other memory may have holes that cannot be read."""
    if not paging.cr0 & _PG or not paging.cr0 & _PE:
        return False
    waiting = [_root(paging)]
    for _ in range(_MOST_TABLES):
        if not waiting:
            return False
        table = waiting.pop()
        for entry in _user_entries(memory, ram, table):
            if table.level == 1 or (table.level <= 3 and entry & _LARGE):
                return True
            waiting.append(_Table(entry & _ADDRESS, table.level - 1, 4096 // table.width, table.width))
    return True


@dataclass(frozen=True)
class _Table:
    """`count` entries of `width` bytes; `level` 1 has pages. The third of PAE does not say who may use what is below."""

    address: int
    level: int
    count: int
    width: int
    marked: bool = True


def _root(paging: Paging) -> _Table:
    """The lower part of the table that CR3 names."""
    if paging.efer & _LMA:
        return _Table(paging.cr3 & _ADDRESS, 5 if paging.cr4 & _LA57 else 4, 256, 8)
    if paging.cr4 & _PAE:
        return _Table(paging.cr3 & 0xFFFFFFE0, 3, 3, 8, marked=False)
    return _Table(paging.cr3 & 0xFFFFF000, 2, 768, 4)


def _user_entries(memory: GuestMemory, ram: Sequence[tuple[int, int]], table: _Table) -> list[int]:
    size = table.count * table.width
    if not any(gpa <= table.address and table.address + size <= gpa + length for gpa, length in ram):
        return []
    data = memory.read(table.address, size)
    needed = _PRESENT | _USER if table.marked else _PRESENT
    entries = struct.unpack(f"<{table.count}{'Q' if table.width == 8 else 'I'}", data)
    return [entry for entry in entries if entry & needed == needed]
