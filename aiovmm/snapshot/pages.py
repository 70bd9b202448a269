"""The memory of a guest that stands still: which pages have something in them, copied to a file, summed up."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from aiovmm.errors import HostError
from aiovmm.memory import GuestMemory, MemoryRegion
from aiovmm.native import ffi, lib
from aiovmm.runtime.dataclass import dataclass

__all__ = ["Kept", "extents", "keep", "ram_of", "sum_up"]

PAGE = 4096


@dataclass(frozen=True)
class Kept:
    """How many pages were not zeros, and their sum, which does not depend on where and how they are kept."""

    pages: int
    sum: int


def ram_of(memory: GuestMemory) -> list[MemoryRegion]:
    """The pieces of RAM, in order of their addresses: a file has one after the other."""
    return [region for region in memory.regions if region.ram]


def keep(memory: GuestMemory, out: int, *, release: bool = False) -> Kept:
    """Copy all RAM into the file `out`, which reads as zeros. With `release` private pages are given back as they are copied, and
    the memory is of no use afterwards. In a thread. Raises HostError."""
    offset = 0
    kept = ffi.new("struct avmm_kept *")
    for region in ram_of(memory):
        _keep(region.host, region.size, region.fd, region.offset, out, offset, kept, release and not region.shared)
        offset += region.size
    return Kept(int(kept.pages), int(kept.sum))


def sum_up(memory: GuestMemory) -> Kept:
    """Of all RAM, which is read for that. In a thread. Raises HostError."""
    return keep(memory, -1)


def _keep(host: int, size: int, fd: int, at: int, out: int, offset: int, kept: object, release: bool) -> None:
    piece = ffi.new(
        "struct avmm_piece *",
        {
            "host": host,
            "size": size,
            "data_fd": fd,
            "release": release,
            "data_offset": at,
            "number": offset // PAGE,
        },
    )
    code = lib.avmm_pages_keep(piece, out, offset, kept)
    if code:
        raise HostError("copying guest memory", code)


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
