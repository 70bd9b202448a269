"""The mappings of one domain: sorted, never overlapping (VIRTIO 1.2 §5.13.6.5 and §5.13.6.6). Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from aiovmm.devices.virtio.iommu.rows import Leaf, Rows

__all__ = ["ROW_SIZE", "Mapping", "Mappings"]

ROW_SIZE = 32
"""Bytes of a mapping where many stand one behind the other, for a snapshot: its four numbers."""


class Mapping(NamedTuple):
    """Addresses `start` to `end` (included) lead to guest-physical `physical` and on; `flags` are MAP_READ and MAP_WRITE."""

    start: int
    end: int
    physical: int
    flags: int


class _Leaf(Leaf):
    width = len(Mapping._fields)

    def end(self, at: int) -> int:
        return self.columns[1][at]


class Mappings:
    """See the module."""

    def __init__(self) -> None:
        self._rows = Rows(_Leaf)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Mapping]:
        return map(Mapping._make, self._rows)

    def packed(self) -> bytes:
        """All of them, ROW_SIZE bytes each."""
        return b"".join(map(_packed, self._rows.leaves))

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any address in [start, end] is mapped."""
        last = self._rows.before(end)
        return last is not None and last[0].end(last[1]) >= start

    def add(self, mapping: Mapping) -> None:
        """Add one that overlaps no other."""
        self._rows.insert(mapping)

    def splits(self, start: int, end: int) -> bool:
        """Whether a mapping lies in [start, end] with a part only."""
        before = self._rows.before(start - 1) if start else None
        last = self._rows.before(end)
        return (before is not None and before[0].end(before[1]) >= start) or (
            last is not None and last[0].keys[last[1]] >= start and last[0].end(last[1]) > end
        )

    def remove(self, start: int, end: int) -> tuple[int, int, int]:
        """Take out all in [start, end], none of which that splits: how many, the first's start and the last's end."""
        gone = self._rows.cut(start, end)
        return (sum(map(len, gone)), gone[0].keys[0], gone[-1].end(-1)) if gone else (0, 0, 0)


def _packed(leaf: _Leaf) -> bytes:
    whole = array("Q", bytes(ROW_SIZE * len(leaf)))
    for number, column in enumerate(leaf.columns):
        whole[number :: len(leaf.columns)] = column
    return whole.tobytes()
