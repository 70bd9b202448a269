"""What a passed-through device needs from the machine beyond what PCI needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from aiovmm.native.mapping import Mapping
from aiovmm.pci.services import PciServices

__all__ = ["IntxLine", "MemorySlot", "VfioServices"]


class MemorySlot(Protocol):
    """Memory of this process that the guest sees."""

    def close(self) -> None:
        """Take it away. Idempotent."""


class IntxLine(Protocol):
    """A pin of the interrupt controller for a function's INTA, perhaps shared with other functions: an irq.LevelLine."""

    @property
    def gsi(self) -> int:
        """The global system interrupt that it is, for the firmware's tables."""

    def set_level(self, asserted: bool) -> None:
        """Assert or release the pin. Idempotent."""

    def close(self) -> None:
        """Release it, and give it back. Idempotent."""


class VfioServices(PciServices, Protocol):
    """The machine's side."""

    def memory_slot(self, address: int, size: int, mapping: Mapping) -> MemorySlot:
        """Let the guest see `size` bytes at `host` of this process at guest-physical `address`. Raises HostError."""

    def intx_line(self, ended: Callable[[], None]) -> IntxLine:
        """A line, released. `ended()` is called when the guest has ended the interrupt of a line that was asserted; it is
        released by then, and is asserted again if there is still a reason to."""
