"""Where a virtual address of a guest's lies in its memory: the walk through its tables of stage 1, as its processor does it.

KVM has no ioctl for that on arm64. Source: Arm Architecture Reference Manual (DDI 0487), D8.2 and D8.3: TCR_EL1, TTBRn_EL1,
translation table descriptors; with physical addresses of up to 48 bits, which is as far as a guest's memory reaches here.
"""

from __future__ import annotations

from collections.abc import Callable

from aiovmm.runtime.dataclass import dataclass

__all__ = ["Translation"]

_PAGE_BITS = ({0: 12, 1: 16, 2: 14}, {1: 14, 2: 12, 3: 16})  # by TG0, by TG1
_ADDRESS = (1 << 48) - 1
_VALID, _TABLE_OR_PAGE = 1, 2
_LAST_LEVEL = 3


@dataclass(frozen=True)
class Translation:
    """What a processor's registers say of it: TCR_EL1, TTBR0_EL1 and TTBR1_EL1, and SCTLR_EL1.M, whether there is any."""

    control: int
    bases: tuple[int, int]
    on: bool = True

    def physical(self, address: int, read: Callable[[int], int]) -> int | None:
        """The guest-physical address of a virtual one; None where there is none. `read` gives the 64 bits at a guest-physical
        address."""
        if not self.on:
            return address
        upper = address >> 55 & 1
        page = _PAGE_BITS[upper].get(self.control >> (14, 30)[upper] & 3)
        size = 64 - (self.control >> (0, 16)[upper] & 0x3F)  # bits that tables translate
        off = self.control >> (7, 23)[upper] & 1
        if page is None or off or size <= page:
            return None
        return _walk(self.bases[upper] & _ADDRESS & ~1, address & (1 << size) - 1, size, page, read)


def _walk(table: int, offset: int, size: int, page: int, read: Callable[[int], int]) -> int | None:
    step = page - 3  # bits of a level: a table fills a page
    for level in range(_LAST_LEVEL - (size - page - 1) // step, _LAST_LEVEL + 1):
        shift = page + (_LAST_LEVEL - level) * step
        entry = read(table + 8 * (offset >> shift))
        if not entry & _VALID:
            return None
        if level == _LAST_LEVEL or not entry & _TABLE_OR_PAGE:
            break
        table, offset = entry & _ADDRESS & -(1 << page), offset & (1 << shift) - 1
    if level == _LAST_LEVEL and not entry & _TABLE_OR_PAGE:
        return None  # reserved
    return entry & _ADDRESS & -(1 << shift) | offset & (1 << shift) - 1
