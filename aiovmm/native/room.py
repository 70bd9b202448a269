"""Arrays that native code fills before anybody reads them, of which what is never filled takes no memory.

A queue's arrays have room for all that its driver may offer, and few ever do: of a thousand guests that sleep it is 150 MB.
The C library hands out what others had before, whose pages are there already, or would map each by itself, and mappings are dear
(docs/scaling.md). So they are cut from mappings for many of one size, and begin with a page of their own. What was let go of is
used again first; once all is quiet, `give_back` leaves its pages to the system.
"""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any

from aiovmm.native._native import ffi, lib

__all__ = ["give_back", "room"]

_PAGE, _LARGE = mmap.PAGESIZE, 16 * mmap.PAGESIZE  # less than a page, and more than sixteen, the C library has
_PIECES = 64  # of one size in a mapping
_MAP_NORESERVE = 0x4000  # <asm-generic/mman.h>; in the mmap module of later Pythons only
_malloc: Any = ffi.new_allocator(should_clear_after_alloc=False)


class _Region:
    """A mapping of pieces of one size."""

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        mapping = mmap.mmap(-1, _PIECES * size, flags=flags)
        with suppress(OSError):  # a kernel that has no huge pages
            mapping.madvise(mmap.MADV_NOHUGEPAGE)
        self._memory = ffi.from_buffer("uint8_t[]", mapping)

    def part(self, start: int, size: int) -> Any:
        """These bytes, which keep the mapping. No memoryview: one that is found in a cycle CPython clears though it is in use,
        and then uses it; at the end of a program everything may be."""
        return ffi.buffer(ffi.gc(self._memory + start, partial(_forget, self._memory)), size)

    def give_back(self, start: int, size: int) -> None:
        """These bytes are nobody's: they are zeros next time."""
        address = int(ffi.cast("uintptr_t", self._memory)) + start
        lib.avmm_mem_give_back(ffi.new("struct avmm_span *", (address, size)), 1)


def _forget(_owner: Any, _pointer: Any) -> None:
    """The end of a pointer that was held with its owner, which goes with this call's arguments."""


class _Pieces:
    """All of one size."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[tuple[_Region, int]] = []
        self._lent: dict[Any, tuple[_Region, int]] = {}
        self._end = self._ended  # made once

    def take(self, ctype: str, size: int) -> Any:
        """An array of `size` bytes. When nobody has it any more, its piece is free."""
        try:
            piece = self._free.pop()
        except IndexError:
            piece = self._more()
        region, at = piece
        array = ffi.from_buffer(ctype, region.part(at, size))
        self._lent[weakref.ref(array, self._end)] = piece  # the callback may run in any thread: one step each
        return array

    def _more(self) -> tuple[_Region, int]:
        region = _Region(self._size)
        self._free.extend([(region, at * self._size) for at in range(_PIECES - 1, 0, -1)])
        return region, 0

    def _ended(self, array: Any) -> None:
        self._free.append(self._lent.pop(array))

    def give_back(self) -> None:
        """Unmap what is free as a whole; of the rest leave the pages."""
        taken: list[tuple[_Region, int]] = []  # nobody else's while their pages go
        with suppress(IndexError):
            while True:  # one by one: others may have hold of the list, and add to it
                taken.append(self._free.pop())
        taken.sort(key=lambda piece: (id(piece[0]), piece[1]))
        for region, pieces in groupby(taken, key=lambda piece: piece[0]):
            free = list(pieces)
            if len(free) < _PIECES:
                for _, at in free:
                    region.give_back(at, self._size)
                self._free.extend(reversed(free))


_sizes = {size: _Pieces(size) for size in (_PAGE, 2 * _PAGE, 4 * _PAGE, 8 * _PAGE, _LARGE)}
_items: dict[str, int] = {}


def room(ctype: str, count: int) -> Any:
    """An array, `ctype` such as "struct iovec[]", of `count` items that hold anything. Raises MemoryError."""
    item = _items.get(ctype)
    if item is None:
        item = _items[ctype] = ffi.sizeof(ffi.typeof(ctype).item)
    size = item * count
    if size < _PAGE or size > _LARGE or lib.AVMM_SANITIZED:  # which finds what runs over the edge of a piece of its own
        return _malloc(ctype, count)
    try:
        return _sizes[max(_PAGE, 1 << (size - 1).bit_length())].take(ctype, size)
    except OSError:  # no room for many, nor for one more mapping; the C library may have some for this
        return _malloc(ctype, count)


def give_back() -> None:
    """Leave to the system what is free. Other threads may take some meanwhile."""
    for pieces in _sizes.values():
        pieces.give_back()
