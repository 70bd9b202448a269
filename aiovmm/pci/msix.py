"""MSI-X: the vector table, masks and pending bits (PCI Local Bus 3.0, 6.8.2). Bytes in, effects out.

    vector      MSI-X off        masked (vector or function)       open
    trigger     dropped          pending bit set                   delivered
    becomes     -                -                                 pending ones are delivered once, the bit cleared

Table and pending bits are the flat bytes that the guest reads, so the run loop can serve the table's from them.
"""

from __future__ import annotations

import struct

from aiovmm.errors import UsageError
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State, once

__all__ = ["ENTRY_SIZE", "MAX_VECTORS", "Deliver", "MsixTable", "Route"]

ENTRY_SIZE = 16
MAX_VECTORS = 2048
_CONTROL = 12  # offset of the vector control word in an entry
_MASK_BIT = 1


@dataclass(frozen=True)
class Route:
    """An effect: vector `index` now sends `data` to `address`, unless `masked`."""

    index: int
    address: int
    data: int
    masked: bool


@dataclass(frozen=True)
class Deliver:
    """An effect: vector `index` sends its message now."""

    index: int


class MsixTable:
    """The vectors of one function. After reset all are masked and MSI-X is off."""

    def __init__(self, vectors: int) -> None:
        if not 1 <= vectors <= MAX_VECTORS:
            raise UsageError(f"{vectors} MSI-X vectors: there can be 1 to {MAX_VECTORS}")
        self.vectors = vectors
        self.table = bytearray(struct.pack("<QII", 0, 0, _MASK_BIT) * vectors)
        self.pending = bytearray(_pending_size(vectors))
        self.enabled = False
        self.function_masked = False
        self._told: dict[int, Route] = {}

    def route(self, index: int) -> Route:
        """What vector `index` is programmed to, and whether anything keeps it from being sent."""
        address, data, control = struct.unpack_from("<QII", self.table, index * ENTRY_SIZE)
        masked = not self.enabled or self.function_masked or bool(control & _MASK_BIT)
        return Route(index, address, data, masked)

    def set_control(self, *, enabled: bool, masked: bool) -> list[Route | Deliver]:
        """The capability's message control word was written."""
        if (enabled, masked) == (self.enabled, self.function_masked):
            return []
        self.enabled, self.function_masked = enabled, masked
        if not enabled:
            self.pending[:] = bytes(len(self.pending))
        return [effect for index in range(self.vectors) for effect in self._changed(index)]

    def write_table(self, offset: int, data: bytes) -> list[Route | Deliver]:
        """The guest wrote into the table. Only aligned accesses of 4 or 8 bytes are defined; others are dropped."""
        size = len(data)
        if size not in (4, 8) or offset % size or offset < 0 or offset + size > len(self.table):
            return []
        self.table[offset : offset + size] = data
        index = offset // ENTRY_SIZE
        control = index * ENTRY_SIZE + _CONTROL
        self.table[control : control + 4] = (self.table[control] & _MASK_BIT).to_bytes(4, "little")
        return self._changed(index)

    def trigger(self, index: int) -> bool:
        """The device raises vector `index`: True if the message is to be sent now, else it is pending (or dropped)."""
        route = self._told.get(index)
        if route is not None and not route.masked:
            return True
        if self.enabled:
            self.pending[index // 8] |= 1 << index % 8
        return False

    def save(self) -> State:
        """Table, pending bits and the two bits of the control word."""
        return {
            "table": bytes(self.table),
            "pending": bytes(self.pending),
            "enabled": self.enabled,
            "masked": self.function_masked,
        }

    def load(self, state: State) -> list[Route | Deliver]:
        """Of a table that is as after reset. Raises SnapshotError."""
        table, pending, enabled, masked = once(state, _read, self.vectors)
        self.table[:], self.pending[:] = table, pending
        self.enabled, self.function_masked = enabled, masked
        if not enabled or masked:
            return []  # as after reset: no vector is open
        return [effect for index in range(self.vectors) for effect in self._changed(index)]

    def _changed(self, index: int) -> list[Route | Deliver]:
        route = self.route(index)
        told = self._told.get(index)
        if route == told or (route.masked and told is None):
            return []  # a vector that was never open needs no route
        self._told[index] = route
        effects: list[Route | Deliver] = [route]
        bit = 1 << index % 8
        if not route.masked and self.pending[index // 8] & bit:
            self.pending[index // 8] &= ~bit
            effects.append(Deliver(index))
        return effects


def _read(state: State, vectors: int) -> tuple[bytes, bytes, bool, bool]:
    """Table and pending bits of so many vectors, and the bits of the control word. Raises SnapshotError."""
    fields = Fields(state, "MSI-X")
    table, pending = (
        bytearray(fields.data("table", vectors * ENTRY_SIZE)),
        fields.data("pending", _pending_size(vectors)),
    )
    enabled, masked = fields.flag("enabled"), fields.flag("masked")
    fields.end()
    for control in range(_CONTROL, len(table), ENTRY_SIZE):
        table[control : control + 4] = (table[control] & _MASK_BIT).to_bytes(4, "little")
    known = (1 << vectors) - 1
    return bytes(table), (int.from_bytes(pending, "little") & known).to_bytes(len(pending), "little"), enabled, masked


def _pending_size(vectors: int) -> int:
    """Bytes of the pending bits, which come in eights."""
    return (vectors + 63) // 64 * 8
