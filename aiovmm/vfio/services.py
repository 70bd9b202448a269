"""What a passed-through device needs from the machine beyond what PCI needs."""

from __future__ import annotations

from typing import Protocol

from aiovmm.native.mapping import Mapping
from aiovmm.pci.services import PciServices

__all__ = ["MemorySlot", "VfioServices"]


class MemorySlot(Protocol):
    """Memory of this process that the guest sees."""

    def close(self) -> None:
        """Take it away. Idempotent."""


class VfioServices(PciServices, Protocol):
    """The machine's side."""

    def memory_slot(self, address: int, size: int, mapping: Mapping) -> MemorySlot:
        """Let the guest see `size` bytes at `host` of this process at guest-physical `address`. Raises HostError."""
