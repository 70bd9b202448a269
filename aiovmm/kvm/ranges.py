"""The bus's ranges as native code reads them, replaced as a whole while vCPUs run."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from aiovmm.bus import Range, Space
from aiovmm.errors import StateError
from aiovmm.native import ffi, lib, owners
from aiovmm.runtime.dataclass import dataclass

__all__ = ["RangeCounts", "RangeTable"]


@dataclass(frozen=True)
class RangeCounts:
    """Accesses to one range, by how they were answered: `sync` made a vCPU wait for the event loop."""

    sync: int
    posted: int
    shadow: int
    ignored: int


class RangeTable:
    """Builds and publishes `struct avmm_table`, and keeps what native code points to alive for as long as it does."""

    def __init__(self, native_vm: Any) -> None:
        self._vm = native_vm
        self._cells: dict[Range, _Cells] = {}
        self._current: Any = None
        self._retired: list[Any] = []

    def publish(self, ranges: Sequence[Range]) -> None:
        """Put `ranges` in force for the next exit of every vCPU. They are sorted by base within a space, as Bus has them."""
        if self._vm is None:
            raise StateError("the VM of this range table is closed")
        new = [r for r in ranges if r not in self._cells]
        made = dict(zip(new, _cells(new), strict=True))
        self._cells = {r: made[r] if r in made else self._cells[r] for r in ranges}
        table = self._build(ranges)
        lib.avmm_vm_publish(self._vm, table)
        if self._current is not None:
            self._retired.append(self._current)
        self._current = table
        self._retired = [old for old in self._retired if lib.avmm_table_used(self._vm, old)]

    def counts(self, rng: Range) -> RangeCounts:
        """How often the range was used so far. Raises KeyError if it is not published."""
        return RangeCounts(*self._cells[rng].counts)

    def close(self) -> None:
        """Forget everything. No vCPU may be running."""
        lib.avmm_vm_publish(self._vm, ffi.NULL)
        self._vm = self._current = None
        self._retired.clear()
        self._cells.clear()

    def _build(self, ranges: Sequence[Range]) -> Any:
        table = ffi.new("struct avmm_table *")
        arrays = []
        for space in Space:
            mine = [self._cells[r] for r in ranges if r.space == space]
            entries = b"".join([cells.entry for cells in mine])
            array = ffi.new("struct avmm_range[]", len(mine))
            ffi.memmove(array, entries, len(entries))
            owners.keep(array, mine)
            table.count[space] = len(mine)
            arrays.append(array)
        owners.link(table, ranges=arrays)
        return table


_RANGE = struct.Struct("@QQNNNQ")  # struct avmm_range


class _Cells:
    """What native code reads and writes for one range, for as long as it is published. `entry` is its `struct avmm_range`, made
    once: a guest that moves one BAR has all ranges published anew."""

    def __init__(self, rng: Range, counts: Any, address: int, at: int) -> None:
        """Its counts are those from `at` on of the array `counts`, which is at `address`."""
        self._counts, self._at = counts, at
        self._pages: tuple[Any, ...] = ()
        policy = shadow = ecam = 0
        if (fast := rng.fast) is not None:
            policies, policy = owners.placed(fast.policy)
            shadows, shadow = owners.placed(fast.shadow)
            self._pages = policies, shadows
            ecam = fast.ecam
        self.entry = _RANGE.pack(rng.base, rng.size, policy, shadow, address + at * _COUNT_SIZE, ecam)

    @property
    def counts(self) -> list[int]:
        return [int(self._counts[self._at + kind]) for kind in range(lib.AVMM_COUNTS)]


_COUNT_SIZE = 8


def _cells(ranges: Sequence[Range]) -> list[_Cells]:
    """Of all these, with their counts in one array."""
    counts = ffi.new("uint64_t[]", lib.AVMM_COUNTS * len(ranges))
    address = owners.address(counts)
    return [_Cells(rng, counts, address, lib.AVMM_COUNTS * i) for i, rng in enumerate(ranges)]
