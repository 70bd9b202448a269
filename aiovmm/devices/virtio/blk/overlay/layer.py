"""A layer of a disk for native code: its file, its map, and what lies below it."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator, Sequence

from aiovmm.native import ffi, lib, owners
from aiovmm.native.mapping import Mapping

__all__ = ["MAP_PAGE", "Layer"]

MAP_PAGE = int(lib.AVMM_BLK_MAP_PAGE)
_TAKEN_AT_ONCE = 64
_NORESERVE = 0x4000  # <asm-generic/mman.h>


class Layer:
    """`native` is the `struct avmm_blk_layer *`. A layer with a map is an overlay's; its `fd` belongs to the image. A map
    that the file does not keep is never stable, and nothing asks for that.

    Everything here may block. The loop's thread sets bits meanwhile.
    """

    def __init__(self, fd: int, size: int) -> None:
        self.native = ffi.new("struct avmm_blk_layer *")
        self.native.fd = fd
        self.native.size = size
        self._map_at: int | None = None
        self._pages = 0
        self._lock = threading.Lock()
        self._failed: int = 0

    def put_over(self, below: Layer, below_size: int, *, shift: int, data_at: int, map_size: int) -> None:
        """Give it an empty map of `map_size` bytes, which takes up no memory where nothing is set, over what is below."""
        self._pages = -(-map_size // MAP_PAGE)
        self._map = Mapping(-1, self._pages * MAP_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        native = self.native
        native.shift, native.data_at, native.below_size = shift, data_at, below_size
        owners.link(native, map=owners.view(self._map, "uint64_t *"), below=below.native)

    def keep_map(self, map_at: int) -> None:
        """Read the map of the disk's clusters from the file, and have `flush` write it there. Raises OSError."""
        clusters = self._clusters
        used = -(-clusters // (8 * MAP_PAGE)) * MAP_PAGE  # whole pages, which O_DIRECT takes as well
        with memoryview(self._map) as view:
            for at, size in _data_in(self.native.fd, map_at, used):
                done = os.preadv(self.native.fd, [view[at - map_at : at - map_at + size]], at)
                if done != size:  # what is missing would show what is below
                    raise OSError(errno.EIO, "the map of the overlay cannot be read whole")
        if clusters % 8:  # what lies beyond the disk may be its own one day, when it has grown
            self._map[clusters // 8] &= (1 << clusters % 8) - 1
        self._map_at = map_at
        owners.link(self.native, dirty=ffi.new("uint8_t[]", self._pages))

    @property
    def _clusters(self) -> int:
        return -(-int(self.native.size) // (1 << int(self.native.shift)))

    def grow(self, size: int) -> None:
        """The disk has `size` bytes; what is new shows zeros, whatever is below."""
        self.native.size = size

    def shrink(self, size: int) -> None:
        """The disk has `size` bytes, and if it grows again what is cut off now does not come back. The map is written anew with
        the next flush."""
        native = self.native
        native.size, native.below_size = size, min(native.below_size, size)
        clusters = self._clusters
        if clusters % 8:
            self._map[clusters // 8] &= (1 << clusters % 8) - 1
        first = -(-clusters // 8)
        for page in range(clusters // 8 // MAP_PAGE, self._pages):
            at, end = max(first, page * MAP_PAGE), (page + 1) * MAP_PAGE
            if any(self._map[at:end]):
                self._map[at:end] = bytes(end - at)
            if native.dirty != ffi.NULL:
                native.dirty[page] = 1
        native.changed += 1

    def clear(self) -> None:
        """Nothing is here any more. Nobody may use the disk; the map is written with the next flush."""
        native = self.native
        for page in range(self._pages):
            native.dirty[page] = 1
        self._map[:] = bytes(len(self._map))
        native.changed += 1

    @property
    def pages(self) -> memoryview:
        """The map as it is."""
        return memoryview(self._map)

    def flush(self) -> int:
        """What was written is on the medium, then the map that says so; 0 or an errno. Once the medium has failed nobody knows
        what is there (fsync(2)): nothing more is said to be, and each flush fails from then on."""
        if self._map_at is None:
            return 0
        with self._lock:
            if self._failed:
                return self._failed
            changed = int(lib.avmm_blk_layer_changed(self.native))
            if changed == self.native.stable:
                self._failed = error = _synced(self.native.fd)
            elif not (error := self._write_map()):
                lib.avmm_blk_layer_settle(self.native, changed)
            return error

    def _write_map(self) -> int:
        """Its pages go the way of the data that they speak of, a few at a time."""
        numbers = ffi.new("uint32_t[]", _TAKEN_AT_ONCE)
        copies = Mapping(-1, _TAKEN_AT_ONCE * MAP_PAGE)  # aligned, for O_DIRECT
        page = ffi.new("uint32_t *")
        while page[0] < self._pages:
            taken = lib.avmm_blk_layer_take(
                self.native, page, self._pages, numbers, owners.view(copies), _TAKEN_AT_ONCE
            )
            written = False
            try:
                error = self._failed = _synced(self.native.fd)
                error = error or self._write_pages(numbers[0:taken], memoryview(copies))
                written = not error
            finally:
                if not written:  # or a later flush would say that the map has them
                    for number in numbers[0:taken]:
                        self.native.dirty[number] = 1
            if error:
                return error
        self._failed = _synced(
            self.native.fd
        )  # nobody knows of the map's pages either, nor of data that has come meanwhile
        return self._failed

    def _write_pages(self, numbers: Sequence[int], copies: memoryview) -> int:
        assert self._map_at is not None
        try:
            for i, number in enumerate(numbers):
                page = copies[i * MAP_PAGE : (i + 1) * MAP_PAGE]
                if os.pwritev(self.native.fd, [page], self._map_at + number * MAP_PAGE) != MAP_PAGE:
                    return errno.ENOSPC
        except OSError as exc:
            return exc.errno or errno.EIO
        return 0


def _synced(fd: int) -> int:
    try:
        os.fdatasync(fd)
    except OSError as exc:
        return exc.errno or errno.EIO
    return 0


def _data_in(fd: int, start: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of what a file has of [start, start + size), a mebibyte at most each; the rest are holes."""
    at, end = start, start + size
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return
            raise
        stop = min(os.lseek(fd, at, os.SEEK_HOLE), end)
        while at < stop:
            n = min(stop - at, 1 << 20)
            yield at, n
            at += n
