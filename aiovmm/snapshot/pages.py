"""The memory of a guest that stands still: which pages have something in them, copied to a file, summed up."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

from aiovmm.errors import HostError
from aiovmm.memory import GuestMemory, MemoryRegion
from aiovmm.native import ffi, lib
from aiovmm.runtime.dataclass import dataclass

__all__ = ["PAGE", "Copying", "Kept", "extents", "keep", "pieces_of", "ram_of", "sum_up"]

PAGE = 4096


@dataclass(frozen=True)
class Kept:
    """How many pages were not zeros, and their sum, which does not depend on where and how they are kept."""

    pages: int
    sum: int


def ram_of(memory: GuestMemory) -> list[MemoryRegion]:
    """The pieces of RAM, in order of their addresses: a file has one after the other."""
    return [region for region in memory.regions if region.ram]


class Copying:
    """Memory that is copied in a thread: what was kept of it so far. `place` is where to, for errors."""

    def __init__(self, place: str | None = None) -> None:
        self.place = place
        self.native = ffi.new("struct avmm_kept *")

    @property
    def kept(self) -> Kept:
        """So far."""
        return Kept(int(self.native.pages), int(self.native.sum))

    def give_up(self) -> None:
        """Nobody wants it any more: it ends soon, by HostError with ECANCELED, unless it has ended. From any thread."""
        self.native.given_up = 1


def keep(memory: GuestMemory, out: int, *, release: bool = False, copying: Copying | None = None) -> Kept:
    """Copy all RAM into the file `out`, which reads as zeros. With `release` private pages are given back as they are copied, and
    the memory is of no use afterwards. In a thread. Raises HostError."""
    copying = copying or Copying()
    for piece in pieces_of(memory, release=release):
        if code := lib.avmm_pages_keep(piece, out, piece.number * PAGE, copying.native):
            raise HostError("copying guest memory", code, path=copying.place)
    return copying.kept


def sum_up(memory: GuestMemory) -> Kept:
    """Of all RAM, which is read for that. In a thread. Raises HostError."""
    return keep(memory, -1)


def pieces_of(memory: GuestMemory, *, release: bool = False) -> Iterator[Any]:
    """Each piece of its RAM as `struct avmm_piece *`; with `release` private ones are to be given back as they are copied."""
    number = 0
    for region in ram_of(memory):
        yield ffi.new(
            "struct avmm_piece *",
            {
                "host": region.host,
                "size": region.size,
                "data_fd": region.fd,
                "release": release and not region.shared,
                "data_offset": region.offset,
                "number": number,
            },
        )
        number += region.size // PAGE


def extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of what a sparse file has between `start` and `end`."""
    at = start
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing more
                return
            raise
        if data >= end:
            return
        at = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        yield data, at - data
