"""What a machine is built from that goes on where another one stood: a saved state in the place of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from aiovmm.memory import GuestMemory
from aiovmm.runtime.dataclass import dataclass, field
from aiovmm.runtime.plain import State

__all__ = ["Restored"]

T = TypeVar("T")


@dataclass(eq=False)
class Restored:
    """`state` is what `standstill.save` gave, `map_memory(ram)` maps the memory that goes with it at (gpa, size) pieces. One may
    be used for many machines: what is read from the state once is kept."""

    state: State
    map_memory: Callable[[list[tuple[int, int]]], GuestMemory]
    _read: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, read: Callable[[], T]) -> T:
        """What `read` gave the first time, under this name."""
        if name not in self._read:
            self._read[name] = read()
        result: T = self._read[name]
        return result
