"""Bytes of a guest's that are kept, as they come. Pure.

Whoever sends them two at a time would have each pair cost the host an object, twenty times what a limit on the bytes says: so
small pieces are put together as they come, and large ones are not copied.
"""

from __future__ import annotations

__all__ = ["Gathered"]

_LARGE = 4096  # bytes of a piece that is kept as it is
_TOGETHER = 64 << 10  # bytes of small ones that make a large one


class Gathered:
    """`size`: how many there are."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._small = bytearray()

    def add(self, data: bytes) -> None:
        """Behind what is there."""
        self.size += len(data)
        if len(data) < _LARGE:
            self._small += data
        if len(data) >= _LARGE or len(self._small) >= _TOGETHER:
            self._put_together()
        if len(data) >= _LARGE:
            self._pieces.append(data)

    def take(self) -> list[bytes]:
        """All of them, which then are here no more."""
        self._put_together()
        pieces, self._pieces, self.size = self._pieces, [], 0
        return pieces

    def __bytes__(self) -> bytes:
        return b"".join((*self._pieces, self._small))

    def _put_together(self) -> None:
        if self._small:
            self._pieces.append(bytes(self._small))
            self._small.clear()
