"""The memory's file of an incremental snapshot: which pages it has, and these, one after the other.

    a bitmap of the pages that it has, and one of those among them that are not zeros; each up to a multiple of 4 KiB
    the pages that are not zeros, in order

Bit n%8 of byte n//8 is for page n of the guest's RAM.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from contextlib import suppress
from typing import Any

from aiovmm.errors import HostError, SnapshotError
from aiovmm.memory import GuestMemory
from aiovmm.native import ffi, lib, owners
from aiovmm.native.mapping import Mapping
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.forks import keep_private, let_go
from aiovmm.snapshot.dirty import bits_of
from aiovmm.snapshot.pages import PAGE, Copying, Kept, extents, pieces_of, sum_up

__all__ = ["Increment", "Writer", "file_size", "open_increment"]


_LARGEST = 4 << 40
"""Bytes of RAM of a guest that increments are of: what it says is believed before anything else is known of it, and 16 KiB of
that are a byte of a map that is read and summed up."""

_PART = 1 << 20  # bytes of a map that are looked at at once
_ROOM = 256 << 20  # bytes of a buffer at most; what is more goes to the file while the guest stands still


class Writer:
    """An increment that goes to the empty file `out`; about `pages` are expected. It is made before the guest stands still, has
    its pages by `take`, and writes them by `finish` when the guest runs again. All in a thread, and `close` in any case."""

    def __init__(self, out: int, pages: int, copying: Copying) -> None:
        room = min(_rounded((pages + pages // 4) * PAGE), _ROOM)
        self._out = out
        self._buffer = Mapping(-1, max(room, PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without them
            self._buffer.madvise(mmap.MADV_HUGEPAGE)
        lib.avmm_mem_populate(self._buffer.host, room)  # or each page comes as it is filled
        self._copying = copying
        self._kept = copying.native
        self._changed = self._full = bytearray()
        self._increment: Any = None

    def take(self, memory: GuestMemory, changed: bytearray) -> None:
        """The changed pages of `memory`. Once. Raises HostError."""
        self._changed, self._full = changed, bytearray(len(changed))
        self._increment = _native(self._out, changed, self._full, self._full)
        owners.link(self._increment, buffer=owners.view(self._buffer))
        self._increment.room = len(self._buffer)
        self._increment.at += len(self._buffer)  # what finds no room is after all that did
        for piece in pieces_of(memory):
            code = lib.avmm_increment_keep(piece, self._increment, self._kept)
            _check(code, "copying guest memory", self._copying.place)

    def finish(self) -> tuple[Kept, str]:
        """What it has, and the SHA-256 of its bitmaps. Raises HostError."""
        maps = _padded(self._changed) + _padded(self._full)
        code = lib.avmm_increment_flush(self._increment, len(maps), self._kept)
        _check(code or _write(self._out, maps), "writing guest memory", self._copying.place)
        return self._copying.kept, hashlib.sha256(maps).hexdigest()

    def close(self) -> None:
        """Idempotent."""
        self._increment = None
        self._buffer.close()


def _check(code: int, doing: str, path: str | None = None) -> None:
    if code:
        raise HostError(doing, code, path=path)


def _write(fd: int, data: bytes) -> int:
    """At its start: 0 or an errno."""
    try:
        return 0 if os.pwrite(fd, data, 0) == len(data) else errno.ENOSPC
    except OSError as exc:
        return exc.errno or errno.EIO


@dataclass(eq=False)
class Increment:
    """One that was opened, of a guest with `size` bytes of RAM. `close` when nobody is to have it any more."""

    fd: int
    size: int
    kept: Kept
    changed: mmap.mmap
    full: mmap.mmap

    def apply(self, memory: GuestMemory, done: bytearray) -> None:
        """Have its pages in `memory`, all but those that are `done`; then they are, too. In a thread. Raises HostError."""
        kept = ffi.new("struct avmm_kept *")
        increment = _native(self.fd, self.changed, self.full, done)
        for piece in pieces_of(memory):
            code = lib.avmm_increment_apply(piece, increment, kept)
            _check(code, "reading the pages of an incremental snapshot")

    def verify(self) -> bool:
        """Whether its pages are what was saved. In a thread."""
        memory = GuestMemory.create([(0, self.size)], shared=False)
        try:
            self.apply(memory, bytearray(len(self.changed)))
            return sum_up(memory) == self.kept
        finally:
            memory.close()

    def close(self) -> None:
        """Once."""
        os.close(let_go(self.fd))


def open_increment(fd: int, size: int, kept: Kept, maps_sum: str) -> Increment:
    """Of the file `fd`, which it closes in the end. Raises SnapshotError, with it left open, for what is none."""
    if size > _LARGEST:
        raise SnapshotError(f"it is of a guest with {size} bytes of memory, and increments are of {_LARGEST} at most")
    length = bits_of(size)
    changed, full = (_map(fd, at, _rounded(length)) for at in (0, _rounded(length)))
    if _sha256(changed, full) != maps_sum or _pages(changed, full, length) != kept.pages:
        raise SnapshotError("the map of its pages is not what was saved: the file is damaged")
    return Increment(keep_private(fd), size, kept, changed, full)


def _map(fd: int, start: int, length: int) -> mmap.mmap:
    """A map of the file: memory as far as the file has data there, which may be nothing of what it claims."""
    bits = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with memoryview(bits) as view:
        for offset, size in extents(fd, start, start + length):
            at, end = offset - start, offset - start + size
            while at < end and (done := os.preadv(fd, [view[at:end]], start + at)):
                at += done
    return bits


def _sha256(*maps: mmap.mmap) -> str:
    digest = hashlib.sha256()
    for bits in maps:
        digest.update(bits)
    return digest.hexdigest()


def _pages(changed: mmap.mmap, full: mmap.mmap, length: int) -> int:
    """How many are full; -1 if one is that is not among those that are there."""
    pages = 0
    for at in range(0, length, _PART):
        some, among = (int.from_bytes(bits[at : min(at + _PART, length)], "little") for bits in (full, changed))
        if some & ~among:
            return -1
        pages += some.bit_count()
    return pages


def file_size(size: int, pages: int) -> int:
    """Bytes of the file of an increment with so many pages, of a guest with `size` bytes of RAM."""
    return 2 * _rounded(bits_of(size)) + pages * PAGE


def _native(fd: int, changed: bytearray | mmap.mmap, full: bytearray | mmap.mmap, done: bytearray) -> Any:
    increment = ffi.new("struct avmm_increment *", {"fd": fd, "at": 2 * _rounded(len(changed))})
    owners.link(increment, has=owners.view(changed), full=owners.view(full), applied=owners.view(done))
    return increment


def _rounded(length: int) -> int:
    return -(-length // PAGE) * PAGE


def _padded(bits: bytearray) -> bytes:
    return bytes(bits).ljust(_rounded(len(bits)), b"\0")
