"""The PVH start-of-day structure, `hvm_start_info` version 1. Pure.

Source: Xen public/arch-x86/hvm/start_info.h and docs/misc/pvh.pandoc.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from aiovmm.boot.x86_64.e820 import E820Entry

__all__ = ["memmap_table", "module_list", "start_info"]

MAGIC = 0x336EC578  # "xEn3" with the 0x80 bit of the E set
_START_INFO = struct.Struct("<4I4Q2I")
_MODULE = struct.Struct("<4Q")
_MEMMAP = struct.Struct("<QQII")


def start_info(*, modules: tuple[int, int], cmdline: int, rsdp: int, memmap: tuple[int, int]) -> bytes:
    """56 bytes. `modules` and `memmap` are (count, gpa of the table); `cmdline` and `rsdp` are addresses or 0."""
    count, modlist = modules
    entries, table = memmap
    return _START_INFO.pack(MAGIC, 1, 0, count, modlist if count else 0, cmdline, rsdp, table, entries, 0)


def module_list(initrd: tuple[int, int]) -> bytes:
    """One `hvm_modlist_entry` of 32 bytes: the initrd at (gpa, size)."""
    return _MODULE.pack(initrd[0], initrd[1], 0, 0)


def memmap_table(entries: Sequence[E820Entry]) -> bytes:
    """`hvm_memmap_table_entry` records of 24 bytes each; the types are e820's."""
    return b"".join(_MEMMAP.pack(e.address, e.size, e.type, 0) for e in entries)
