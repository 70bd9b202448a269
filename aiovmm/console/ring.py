"""The history ring: the newest bytes of a stream, addressed by their offset from the stream's beginning.

Offsets never wrap: byte `n` is the n-th the guest ever printed. A reader is therefore nothing but an offset, the ring
needs no list of its readers, and how much a reader has lost is a subtraction.

    0         start                    end
    +-----------+-----------------------+--> offset
        lost      kept: <= capacity       not printed yet

Byte `n` lies at index `n % capacity` of the buffer, which grows until it has `capacity` bytes.
"""

from __future__ import annotations

from aiovmm.errors import UsageError

__all__ = ["HistoryRing"]


class HistoryRing:
    """Keeps the newest `capacity` bytes; its memory grows with what was written, up to `capacity`, and never beyond."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise UsageError(f"a history of {capacity} bytes cannot hold anything")
        self.capacity = capacity
        self.end = 0
        self._buffer = bytearray()
        self._floor = 0  # what is before it was never here

    @property
    def start(self) -> int:
        """Offset of the oldest byte that is kept, which is also the number of bytes lost."""
        return max(self._floor, self.end - len(self._buffer))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`; the oldest bytes beyond the capacity are dropped. Cost: one copy of `data`."""
        view = memoryview(data)
        if len(view) >= self.capacity:
            self._replace(view)
            return
        room = self.capacity - len(self._buffer)
        if room:
            self._buffer += view[:room]
            self.end += len(view[:room])
            view = view[room:]
        if view:
            self._overwrite(view)

    def skip(self, size: int) -> None:
        """`size` bytes, of any number, are lost, and with them what came before. Nothing is written over what cannot be read any
        more: who says how many were lost may be hostile, and say it again and again."""
        if not size:
            return
        self._buffer += bytes(min(size, self.capacity - len(self._buffer)))
        self.end += size
        self._floor = self.end

    def read(self, offset: int, size: int | None = None) -> bytes:
        """Up to `size` bytes (None: all) from `offset`, which must lie in `start..end` (else IndexError)."""
        if not self.start <= offset <= self.end:
            raise IndexError(f"offset {offset} is not in {self.start}..{self.end}")
        length = self.end - offset if size is None else max(0, min(size, self.end - offset))
        first = offset % self.capacity
        with memoryview(self._buffer) as view:
            if first + length <= len(view):
                return bytes(view[first : first + length])
            return b"".join((view[first:], view[: first + length - len(view)]))

    def _replace(self, data: memoryview) -> None:
        """`data` alone fills the ring: nothing older stays, and only its own newest bytes do."""
        self.end += len(data)
        kept = data[-self.capacity :]
        split = self.capacity - self.end % self.capacity
        self._buffer[:] = b"".join((kept[split:], kept[:split]))

    def _overwrite(self, data: memoryview) -> None:
        """The buffer is full and `data` shorter than it."""
        first = self.end % self.capacity
        split = min(len(data), self.capacity - first)
        self._buffer[first : first + split] = data[:split]
        self._buffer[: len(data) - split] = data[split:]
        self.end += len(data)
