"""The mappings of one domain: sorted, never overlapping (VIRTIO 1.2 §5.13.6.5 and §5.13.6.6). Pure."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Mapping", "Mappings"]


class Mapping(NamedTuple):
    """Addresses `start` to `end` (included) lead to guest-physical `physical` and on; `flags` are MAP_READ and MAP_WRITE."""

    start: int
    end: int
    physical: int
    flags: int


class Mappings:
    """See the module."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._items: list[Mapping] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._items)

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any address in [start, end] is mapped."""
        i = bisect.bisect_right(self._starts, end)
        return i > 0 and self._items[i - 1].end >= start

    def add(self, mapping: Mapping) -> None:
        """Add one that overlaps no other."""
        i = bisect.bisect_left(self._starts, mapping.start)
        self._starts.insert(i, mapping.start)
        self._items.insert(i, mapping)

    def cover(self, start: int, end: int) -> tuple[int, int] | None:
        """Indices [first, last) of the mappings that lie in [start, end]; None if one of them lies in it with a part only."""
        first = bisect.bisect_left(self._starts, start)
        last = bisect.bisect_right(self._starts, end)
        if first > 0 and self._items[first - 1].end >= start:
            return None
        if last > first and self._items[last - 1].end > end:
            return None
        return first, last

    def remove(self, first: int, last: int) -> list[Mapping]:
        """Take out what `cover` found."""
        gone = self._items[first:last]
        del self._starts[first:last], self._items[first:last]
        return gone
