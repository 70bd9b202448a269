"""Ports that a guest's programmers write to: the debug console (QEMU's isa-debugcon, of Bochs before it), and port 0x80,
where firmware and kernels leave a number that says how far they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from aiovmm.bus import FastPage, Policy

__all__ = ["DebugConsole", "PostCode", "range_of"]

_PIECE = 64 << 10  # bytes handed on at once
_RANGES = ((0x20, "firmware"), (0x40, "boot loader"), (0x60, "kernel"), (0x80, "user space"), (0x100, "custom"))


class DebugConsole:
    """A BusDevice of 1 byte: what is written is text, a byte at a time, which goes to `output` once a drain. It reads as
    the number of the usual port, by which guests find it. No vCPU waits for it."""

    SIZE: ClassVar[int] = 1
    MAGIC: ClassVar[int] = 0xE9

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self.fast = FastPage(1, bytearray([self.MAGIC]), bytearray([Policy.SHADOW_READ | Policy.POSTED_WRITE]))
        self._output = output
        self._gathered = bytearray()

    def read(self, offset: int, size: int) -> bytes:
        """For an access that is wider than the port."""
        return self.MAGIC.to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:
        """The first byte is the port's."""
        self.write_many(offset, data[:1], 1)

    def write_many(self, offset: int, data: bytes, size: int) -> None:
        """Many at once."""
        self._gathered += data[::size]
        if len(self._gathered) >= _PIECE:
            self.end_of_batch()

    def end_of_batch(self) -> None:
        """Hand on what has come."""
        if self._gathered:
            text, self._gathered = bytes(self._gathered), bytearray()
            self._output(text)


class PostCode:
    """A BusDevice of 1 byte: each number that is written goes to `tell`, when it is another than the one before. No vCPU
    waits."""

    SIZE: ClassVar[int] = 1

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.fast = FastPage(1, policy=bytearray([Policy.POSTED_WRITE | Policy.LAZY_WRITE]))
        self._tell = tell
        self._last = -1

    def read(self, offset: int, size: int) -> bytes:
        """There is nothing to read."""
        return b"\xff" * size

    def write(self, offset: int, data: bytes) -> None:
        """A number."""
        if data[0] != self._last:
            self._last = data[0]
            self._tell(data[0])


def range_of(code: int) -> str:
    """Who uses such numbers, by the reference monitor's convention."""
    return next(name for end, name in _RANGES if code < end)
