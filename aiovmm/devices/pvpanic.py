"""pvpanic: the register through which a guest's kernel says that it has panicked (QEMU's docs/specs/pvpanic)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from aiovmm.runtime.plain import Fields, State

__all__ = ["CRASH_LOADED", "PANICKED", "Pvpanic"]

PANICKED = 1 << 0
CRASH_LOADED = 1 << 1  # and another kernel, loaded before, is about to look into it
_KNOWN = PANICKED | CRASH_LOADED


class Pvpanic:
    """A BusDevice of 1 byte. Reads tell which events it knows; a write tells of one. Each is told on once: a guest can
    write them as fast as it likes."""

    SIZE: ClassVar[int] = 1

    def __init__(self, tell: Callable[[int], None]) -> None:
        """`tell` is called with PANICKED or CRASH_LOADED."""
        self._tell = tell
        self._told = 0

    def read(self, offset: int, size: int) -> bytes:
        """What there is to write."""
        return _KNOWN.to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:
        """It has happened."""
        new = data[0] & _KNOWN & ~self._told
        self._told |= new
        for event in (PANICKED, CRASH_LOADED):
            if new & event:
                self._tell(event)

    def save(self) -> State:
        """What was told."""
        return {"told": self._told}

    def load(self, state: State) -> None:
        """Put it back. Raises SnapshotError."""
        fields = Fields(state, "pvpanic")
        told = fields.number("told", 0, _KNOWN)
        fields.end()
        self._told = told
