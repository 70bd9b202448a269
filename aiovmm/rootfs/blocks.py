"""Where the content of files goes while an image is made: into its blocks at once, so that nothing is written twice."""

from __future__ import annotations

import os
from collections.abc import Iterable

from aiovmm.rootfs.tree import Content

__all__ = ["BLOCK", "Allowance", "Blocks", "TooLarge"]

BLOCK = 4096
_LONGEST_TAIL = 2048  # bytes that stand beside the inode, instead of in a block of their own
_FREE = 256  # runs of free blocks that are remembered: each file looks through them
_TAILS = 256 << 20  # bytes of all tails together, which are in memory until the image is complete


def _count(run: tuple[int, int]) -> int:
    return run[1]


class TooLarge(Exception):
    """The files are more than they may be together."""


class Allowance:
    """`most` bytes that may be read in all, whatever becomes of them."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def take(self, size: int) -> None:
        """So many were read. Raises TooLarge."""
        self._left -= size
        if self._left < 0:
            raise TooLarge(f"its archives are more than {self._most} bytes, unpacked")


class Blocks:
    """Blocks of the file behind `fd`, which `first` others come before. `most`: bytes of files at a time. `unpacked`: bytes that
    may be read for them."""

    def __init__(self, fd: int, first: int, most: int, unpacked: int = 1 << 62) -> None:
        self.end = first
        self.unpacked = Allowance(unpacked)
        self._fd = fd
        self._most = most
        self._free: list[tuple[int, int]] = []  # block, count
        self._used = 0
        self._tails = 0

    def store(self, size: int, parts: Iterable[bytes]) -> Content:
        """The `size` bytes that `parts` are. Raises TooLarge before it takes any."""
        if self._used + size > self._most:
            raise TooLarge(f"the files are more than {self._most} bytes")
        self._used += size
        tail = size % BLOCK
        if tail > _LONGEST_TAIL or self._tails + tail > _TAILS:
            tail = 0
        self._tails += tail
        count = -(-(size - tail) // BLOCK)
        block = self._take(count)
        return Content(size, block, count, self._write(block, size - tail, parts))

    def free(self, content: Content) -> None:
        """Nothing refers to `content` any more: others may have its blocks."""
        self._used -= content.size
        self._tails -= len(content.tail)
        if content.count:
            self._free.append((content.block, content.count))
            if len(self._free) > _FREE:
                self._free.remove(min(self._free, key=_count))

    def _take(self, count: int) -> int:
        for index, (block, free) in enumerate(self._free):
            if count and free >= count:
                self._free[index : index + 1] = [(block + count, free - count)] if free > count else []
                return block
        block = self.end
        self.end += count
        return block

    def _write(self, block: int, size: int, parts: Iterable[bytes]) -> bytes:
        """Write the first `size` bytes; give back the rest."""
        at, left = block * BLOCK, size
        tail = bytearray()
        for part in parts:
            view = memoryview(part)
            tail += view[left:]
            view = view[:left]
            left -= len(view)
            while view:
                written = os.pwrite(self._fd, view, at)
                at += written
                view = view[written:]
        if size % BLOCK:  # what had the block before may have left something there
            os.pwrite(self._fd, bytes(-size % BLOCK), at)
        return bytes(tail)
