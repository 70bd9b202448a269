"""The bus's ranges as native code reads them, replaced as a whole while vCPUs run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiovmm.bus import Range, Space
from aiovmm.dataclass import dataclass
from aiovmm.native import ffi, lib

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
        self._counts: dict[Range, Any] = {}
        self._current: tuple[Any, ...] = ()
        self._retired: list[tuple[Any, ...]] = []

    def publish(self, ranges: Sequence[Range]) -> None:
        """Put `ranges` in force for the next exit of every vCPU. They are sorted by base within a space, as Bus has them."""
        self._counts = {r: self._counts.get(r) or ffi.new("uint64_t[]", lib.AVMM_COUNTS) for r in ranges}
        table, keep = self._build(ranges)
        lib.avmm_vm_publish(self._vm, table)
        if self._current:
            self._retired.append(self._current)
        self._current = (table, *keep)
        self._retired = [old for old in self._retired if lib.avmm_table_used(self._vm, old[0])]

    def counts(self, rng: Range) -> RangeCounts:
        """How often the range was used so far. Raises KeyError if it is not published."""
        return RangeCounts(*self._counts[rng])

    def close(self) -> None:
        """Forget everything. No vCPU may be running."""
        lib.avmm_vm_publish(self._vm, ffi.NULL)
        self._current = ()
        self._retired.clear()
        self._counts.clear()

    def _build(self, ranges: Sequence[Range]) -> tuple[Any, list[Any]]:
        table = ffi.new("struct avmm_table *")
        keep: list[Any] = []
        for space in Space:
            mine = [r for r in ranges if r.space == space]
            array = ffi.new("struct avmm_range[]", len(mine))
            for slot, rng in zip(array, mine, strict=True):
                counts = self._counts[rng]
                slot.base, slot.size, slot.counts = rng.base, rng.size, counts
                keep.append(counts)
                if rng.fast is not None:
                    policy, shadow = ffi.from_buffer(rng.fast.policy), ffi.from_buffer(rng.fast.shadow)
                    slot.policy, slot.shadow = ffi.cast("uint8_t *", policy), ffi.cast("uint8_t *", shadow)
                    keep += [policy, shadow, rng.fast]
            table.count[space], table.ranges[space] = len(mine), array
            keep.append(array)
        return table, keep
