"""A guest's byte device that takes input only as it is told to."""

from __future__ import annotations

from collections.abc import Callable


class StubDevice:
    """Takes `room` bytes of input (None: any number), then nothing until `make_room`."""

    def __init__(self, room: int | None = None) -> None:
        self.room = room
        self.received = bytearray()
        self.sizes: list[tuple[int, int]] = []
        self._writable: Callable[[], None] | None = None

    def receive(self, data: bytes) -> int:
        taken = len(data) if self.room is None else min(self.room, len(data))
        self.received += data[:taken]
        if self.room is not None:
            self.room -= taken
        return taken

    def set_writable_callback(self, callback: Callable[[], None] | None) -> None:
        self._writable = callback

    def make_room(self, size: int) -> None:
        assert self.room is not None
        self.room += size
        if self._writable is not None:
            self._writable()

    def resize(self, cols: int, rows: int) -> None:
        self.sizes.append((cols, rows))
