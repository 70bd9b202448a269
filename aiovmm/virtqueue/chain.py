"""One descriptor chain: what the driver lent to the device, validated, as views of guest memory without a copy."""

from __future__ import annotations

from aiovmm.errors import ChainError

__all__ = ["READ_LIMIT", "Chain"]

READ_LIMIT = 1 << 20
"""Bytes that `read_all` copies at most: overlapping descriptors let a small guest offer 4 GiB in one chain."""


class Chain:
    """A chain taken from a queue: device-readable segments, then device-writable ones, in the driver's order.

    The segments are memoryviews of guest memory, which the guest may change at any time: copy (`read`) before you check.
    `read` and `write` are cursors that cross segment borders. Return the chain with `queue.push(chain)`.
    """

    __slots__ = (
        "_passed",
        "_rest",
        "_room",
        "done",
        "head",
        "owner",
        "readable",
        "readable_size",
        "writable",
        "writable_size",
        "written",
    )

    def __init__(
        self,
        head: int,
        readable: list[memoryview],
        writable: list[memoryview],
        readable_size: int,
        writable_size: int,
        owner: object = None,
    ) -> None:
        self.head = head
        self.owner = owner  # the queue that it came from
        self.readable = readable
        self.writable = writable
        self.readable_size = readable_size
        self.writable_size = writable_size
        self.written = 0  # bytes written so far, from the start of the writable segments
        self.done = False  # returned to the driver
        self._passed = 0  # bytes read so far
        self._rest: _Cursor | None = None
        self._room: _Cursor | None = None

    def __repr__(self) -> str:
        return f"<Chain {self.head}: {self.readable_size} readable, {self.writable_size} writable bytes>"

    @property
    def unread(self) -> int:
        """Readable bytes that `read` has not passed yet."""
        return self.readable_size - self._passed

    def read(self, size: int) -> bytes:
        """A copy of the next `size` readable bytes. Raises ChainError if there are fewer."""
        parts = self._take(size)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def read_all(self, limit: int = READ_LIMIT) -> bytes:
        """A copy of all readable bytes that are left. Raises ChainError if they are more than `limit`."""
        if self.unread > limit:
            raise ChainError(f"{self.unread} bytes where at most {limit} are sensible", self.head)
        return self.read(self.unread)

    def skip(self, size: int) -> None:
        """Pass over `size` readable bytes. Raises ChainError if there are fewer."""
        self._take(size)

    @property
    def room(self) -> int:
        """Writable bytes that `write` has not filled yet."""
        return self.writable_size - self.written

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append to the writable segments. Raises ChainError, and writes nothing, if `data` does not fit."""
        view = memoryview(data).cast("B")
        at = 0
        for part in self.reserve(len(view)):
            part[:] = view[at : at + len(part)]
            at += len(part)

    def reserve(self, size: int) -> list[memoryview]:
        """The next `size` writable bytes as views, counted as written; fill them yourself. Raises ChainError."""
        if size > self.room:
            raise ChainError(f"{size} bytes to return, the driver has room for {self.room}", self.head)
        self.written += size
        if self._room is None:
            self._room = _Cursor(self.writable)
        return self._room.take(size)

    def rewind(self) -> None:
        """Both cursors back to the start."""
        self.written = self._passed = 0
        self._rest = self._room = None

    def _take(self, size: int) -> list[memoryview]:
        if size > self.unread:
            raise ChainError(f"{size} bytes expected, the driver gave {self.unread}", self.head)
        self._passed += size
        if self._rest is None:
            self._rest = _Cursor(self.readable)
        return self._rest.take(size)


class _Cursor:
    """A position in a list of segments."""

    __slots__ = ("_index", "_offset", "_segments")

    def __init__(self, segments: list[memoryview]) -> None:
        self._segments = segments
        self._index = 0
        self._offset = 0

    def take(self, size: int) -> list[memoryview]:
        parts = []
        while size:
            segment = self._segments[self._index]
            part = segment[self._offset : self._offset + size]
            size -= len(part)
            self._offset += len(part)
            if self._offset == len(segment):
                self._index += 1
                self._offset = 0
            parts.append(part)
        return parts
