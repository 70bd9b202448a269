"""Very many rows of numbers, sorted by the first of them: a guest decides how many, and which come and go, all at once perhaps.

They stand in leaves of a bounded size. So one that comes moves few others, and of those that go at once most go with their leaf:
no step here is more work the more rows there are, but for one of each LEAF / 2 of them. Pure.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Self, TypeVar

__all__ = ["LEAF", "Leaf", "Rows"]

LEAF = 1024
"""Rows in a leaf at most; two beside each other have more than half of that."""


class Leaf:
    """Some of the rows: a column for each number of a row, of 64 bits."""

    width = 1

    def __init__(self) -> None:
        self.columns = [array("Q") for _ in range(self.width)]
        self.keys = self.columns[0]

    def __len__(self) -> int:
        return len(self.keys)

    def row(self, at: int) -> tuple[int, ...]:
        """One of them."""
        return tuple(column[at] for column in self.columns)

    def insert(self, at: int, row: Sequence[int]) -> None:
        """Before the row that is there."""
        for column, value in zip(self.columns, row, strict=True):
            column.insert(at, value)

    def cut(self, first: int, last: int) -> Self:
        """Take out the rows [first, last): another leaf."""
        out = type(self)()
        for column, taken in zip(self.columns, out.columns, strict=True):
            taken.extend(column[first:last])
            del column[first:last]
        return out

    def copy(self) -> Leaf:
        """The rows alone."""
        out = Leaf()
        out.columns = [column[:] for column in self.columns]
        return out

    def extend(self, other: Self) -> None:
        """By rows that are all behind these."""
        for column, more in zip(self.columns, other.columns, strict=True):
            column.extend(more)


L = TypeVar("L", bound=Leaf)


class Rows(Generic[L]):
    """All of them, no two with one key. A subclass may follow `leaves`."""

    def __init__(self, leaf: Callable[[], L]) -> None:
        self.leaves: list[L] = []
        self._new = leaf
        self._firsts: list[int] = []
        self._count = 0

    def changed(self, number: int) -> None:
        """The rows of that leaf have."""

    def moved(self) -> None:
        """Leaves have come or gone."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        for leaf in self.leaves:
            yield from zip(*leaf.columns, strict=True)

    def before(self, key: int) -> tuple[L, int] | None:
        """The last row whose key is not larger: its leaf, and where it is in that."""
        n = bisect.bisect_right(self._firsts, key) - 1
        return (self.leaves[n], bisect.bisect_right(self.leaves[n].keys, key) - 1) if n >= 0 else None

    def insert(self, row: Sequence[int]) -> None:
        """One more."""
        n = max(bisect.bisect_right(self._firsts, row[0]) - 1, 0)
        if not self.leaves:
            self.leaves.append(self._new())
            self._firsts.append(row[0])
        leaf = self.leaves[n]
        leaf.insert(bisect.bisect_left(leaf.keys, row[0]), row)
        self._firsts[n] = leaf.keys[0]
        self._count += 1
        if len(leaf) > LEAF:
            self._put(n, n + 1, [leaf, leaf.cut(LEAF // 2, len(leaf))])
        elif self._count == 1:
            self.moved()
        else:
            self.changed(n)

    def cut(self, start: int, end: int) -> list[L]:
        """Take out all whose key lies in [start, end]; the leaves that they stand in now."""
        n, m = max(bisect.bisect_right(self._firsts, start) - 1, 0), bisect.bisect_right(self._firsts, end)
        if n >= m:
            return []
        first, last = self.leaves[n], self.leaves[m - 1]
        low, high = bisect.bisect_left(first.keys, start), bisect.bisect_right(last.keys, end)
        if first is last:
            gone = [first.cut(low, high)] if low < high else []
        else:
            gone = [first.cut(low, len(first)), *self.leaves[n + 1 : m - 1], last.cut(0, high)]
        taken = sum(map(len, gone))
        self._count -= taken
        if taken:
            self._mend(n, m, first, last)
        return [leaf for leaf in gone if len(leaf)]

    def _mend(self, n: int, m: int, first: L, last: L) -> None:
        """Of the leaves [n, m) what is left stands in the first and the last."""
        left = [first] if first is last else [first, last]
        low, high = max(n - 1, 0), min(m + 1, len(self.leaves))
        around = [leaf for leaf in [*self.leaves[low:n], *left, *self.leaves[m:high]] if len(leaf)]
        joined: list[L] = []
        for leaf in around:
            if joined and len(joined[-1]) + len(leaf) <= LEAF // 2:
                joined[-1].extend(leaf)
            else:
                joined.append(leaf)
        if joined == self.leaves[low:high]:
            for number in {n, m - 1}:
                self._firsts[number] = self.leaves[number].keys[0]
                self.changed(number)
        else:
            self._put(low, high, joined)

    def _put(self, low: int, high: int, leaves: list[L]) -> None:
        self.leaves[low:high] = leaves
        self._firsts[low:high] = [leaf.keys[0] for leaf in leaves]
        self.moved()
