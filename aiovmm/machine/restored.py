"""What a machine is built from that goes on where another one stood: a saved state in the place of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from aiovmm.errors import SnapshotError
from aiovmm.memory import GuestMemory
from aiovmm.runtime.dataclass import dataclass, field
from aiovmm.runtime.plain import Fields, State

__all__ = ["Restored"]

T = TypeVar("T")


@dataclass(eq=False)
class Restored:
    """`state` is what `standstill.save` gave, `map_memory(ram)` maps the memory that goes with it at (gpa, size) pieces. One may
    be used for many machines: what is read from the state once is kept."""

    state: State
    map_memory: Callable[[list[tuple[int, int]]], GuestMemory]
    _read: dict[str, Any] = field(default_factory=dict)

    def address_bits(self, here: int) -> int:
        """How far addresses reach, which PCI's windows depend on: as it was, if `here` is enough. Raises SnapshotError."""
        saved = Fields(self.state, "machine").fields("board").number("address_bits", 32, 52)
        if saved > here:
            raise SnapshotError(f"it uses {saved} bits of physical addresses, and this host has {here}")
        return saved

    def once(self, name: str, read: Callable[[], T]) -> T:
        """What `read` gave the first time, under this name."""
        if name not in self._read:
            self._read[name] = read()
        result: T = self._read[name]
        return result
