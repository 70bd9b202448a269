"""Reading parts of a file whose places the file itself names: checked against its size before anything is read. Pure."""

from __future__ import annotations

from collections.abc import Callable

from aiovmm.runtime.dataclass import dataclass

__all__ = ["FileWindow", "OutsideFile"]


class OutsideFile(ValueError):
    """The file names a place that it does not have; the message says what should have been there."""


@dataclass(frozen=True)
class FileWindow:
    """`size` bytes, of which `read(offset, size)` returns parts; it is asked only for what lies within."""

    read: Callable[[int, int], bytes]
    size: int

    @classmethod
    def over(cls, data: bytes) -> FileWindow:
        """All of `data`."""
        return cls(lambda offset, size: data[offset : offset + size], len(data))

    def part(self, offset: int, size: int, what: str) -> bytes:
        """Exactly `size` bytes at `offset`, whatever numbers these are. Raises OutsideFile, which names `what`."""
        if not 0 <= offset <= self.size or not 0 <= size <= self.size - offset:
            raise OutsideFile(f"truncated: {what} ends at byte {offset + size} of a file of {self.size}")
        data = self.read(offset, size)
        if len(data) != size:
            raise OutsideFile(f"truncated: {what} is not all there, for the file has become shorter")
        return data
