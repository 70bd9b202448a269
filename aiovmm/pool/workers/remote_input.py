"""What is typed to a guest in a worker: a console's device here, whose bytes a queue there takes as the guest makes room."""

from __future__ import annotations

from collections.abc import Callable

from aiovmm.errors import PeerError
from aiovmm.pool.workers.frames import MOST_DATA

__all__ = ["WINDOW", "RemoteInput"]

WINDOW = 64 << 10
"""Bytes that are on their way to a console, at most."""


class RemoteInput:
    """See console.ByteDevice and ResizableDevice. `send` gives bytes to the worker, `resized` columns and rows."""

    def __init__(self, send: Callable[[bytes], None], resized: Callable[[int, int], None]) -> None:
        self._send = send
        self._resized = resized
        self._room = WINDOW
        self._writable: Callable[[], None] | None = None

    def receive(self, data: bytes) -> int:
        """See ByteDevice."""
        size = min(len(data), self._room, MOST_DATA)
        if size:
            self._room -= size
            self._send(data[:size])
        return size

    def set_writable_callback(self, callback: Callable[[], None] | None) -> None:
        """See ByteDevice."""
        self._writable = callback

    def resize(self, cols: int, rows: int) -> None:
        """See ResizableDevice."""
        self._resized(cols, rows)

    def taken(self, size: int) -> None:
        """The worker has room for so many more. Raises PeerError if it was never sent so many."""
        if self._room + size > WINDOW:
            raise PeerError(f"{size} bytes of input were taken, and {WINDOW - self._room} had been sent")
        self._room += size
        if self._writable is not None:
            self._writable()
