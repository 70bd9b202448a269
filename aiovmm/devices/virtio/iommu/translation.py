"""Guest memory as one device behind the IOMMU reaches it.

Rings and devices take it in place of guest memory and ask it for every buffer of every chain. What a device has taken from its
rings before a mapping went away it finishes with the addresses that it got then: Linux takes buffers back before it unmaps
them, and the memory is the same guest's in any case. Rings are resolved once; see `Endpoint` for what becomes of them.
"""

from __future__ import annotations

from typing import Any

from aiovmm.devices.virtio.iommu.table import DomainTable
from aiovmm.devices.virtio.iommu.wire import MAP_READ, MAP_WRITE, FaultReason
from aiovmm.errors import GuestFault
from aiovmm.memory import GuestMemory
from aiovmm.native import ffi, owners

__all__ = ["Translation"]


class Translation:
    """An AddressSpace. `bind` says whether it is a domain's mappings, all of guest memory, or nothing (as at first)."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self._table = ffi.new("struct avmm_mem *")
        self._domain: DomainTable | None = None
        self._bypass = False

    def bind(self, domain: DomainTable | None, *, bypass: bool = False) -> None:
        """From now on: `domain`, or without one all of memory (`bypass`) or none of it."""
        if self._domain is not None:
            del self._domain.watchers[self]
        self._domain, self._bypass = domain, bypass and domain is None
        if domain is not None:
            domain.watchers[self] = self.refresh
        self.refresh()

    def refresh(self) -> None:
        """Have native code see what is mapped now; in bypass to be called when guest memory got or lost a region."""
        if self._domain is not None:
            count, regions = self._domain.count, self._domain.regions
        elif self._bypass:
            count, regions = self.memory.table.count, self.memory.native_regions
        else:
            count, regions = 0, ffi.NULL
        self._table.count = count
        owners.link(self._table, regions=regions)

    @property
    def table(self) -> Any:
        """`struct avmm_mem *`, changed in place."""
        return self._table

    def slice(self, address: int, size: int) -> memoryview:
        """View of [address, address + size), not writable where the mapping is not. Raises GuestFault unless one mapping
        holds all of it."""
        if self._domain is None:
            if not self._bypass:
                raise GuestFault(address, size, "what the device may reach")
            return self.memory.slice(address, size)
        piece = self._domain.find(address)
        if piece is None or size < 0 or address + size > piece.base + piece.size or not piece.perm:
            raise GuestFault(address, size, "what the device may reach")
        view = self.memory.slice(piece.gpa + address - piece.base, size)
        return view if piece.perm & MAP_WRITE else view.toreadonly()

    def read(self, address: int, size: int) -> bytes:
        """A copy of `size` bytes. Raises GuestFault."""
        if self._domain is not None and (piece := self._domain.find(address)) and not piece.perm & MAP_READ:
            raise GuestFault(address, size, "what the device may read")
        return bytes(self.slice(address, size))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data`. Raises GuestFault before any byte is written."""
        view = self.slice(address, len(data))
        if view.readonly:
            raise GuestFault(address, len(data), "what the device may write")
        view[:] = data

    def explain(self, address: int) -> tuple[FaultReason, int]:
        """Why an access to `address` fails, and which right it lacks: MAP_READ, MAP_WRITE, or 0 where that is not known."""
        if self._domain is None:
            return FaultReason.DOMAIN, 0
        piece = self._domain.find(address)
        missing = 0 if piece is None else (MAP_READ | MAP_WRITE) & ~piece.perm
        return FaultReason.MAPPING, missing if missing in (MAP_READ, MAP_WRITE) else 0
