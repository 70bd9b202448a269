"""The mappings of a domain as native code reads them: addresses of a device to addresses of the host, sorted, in leaves of which
one array tells (native/src/mem.h).

It is changed in place, between two native calls: rings are served by the event loop's thread, as it is (native/src/ring.h).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

from aiovmm.devices.virtio.iommu.mappings import Mapping
from aiovmm.devices.virtio.iommu.rows import LEAF, Leaf, Rows
from aiovmm.devices.virtio.iommu.wire import MAP_WRITE
from aiovmm.memory import GuestMemory
from aiovmm.native import ffi, owners

__all__ = ["DomainTable", "Piece", "Pieces"]

_REGION_SIZE = ffi.sizeof("struct avmm_region")
_LEAST = 16  # regions that a leaf has room for


class Piece(NamedTuple):
    """`size` bytes at the device's address `base` are those at guest-physical `gpa`; `perm` is MAP_READ and MAP_WRITE."""

    base: int
    size: int
    gpa: int
    perm: int


class _Leaf(Leaf):
    """Pieces, and the same again as regions."""

    width = len(Piece._fields)

    def __init__(self) -> None:
        super().__init__()
        self.regions: Any = None
        self._room = 0

    def insert(self, at: int, row: Sequence[int]) -> None:
        """`row` is a piece, and its address of the host."""
        super().insert(at, row[:-1])
        self._make_room(len(self))
        ffi.memmove(self.regions + at + 1, self.regions + at, (len(self) - 1 - at) * _REGION_SIZE)
        region = self.regions[at]
        region.base, region.size, _, region.perm, region.host = row

    def cut(self, first: int, last: int) -> Self:
        out, behind = super().cut(first, last), len(self) - first
        if out.keys:
            out._make_room(len(out))
            ffi.memmove(out.regions, self.regions + first, len(out) * _REGION_SIZE)
            ffi.memmove(self.regions + first, self.regions + last, behind * _REGION_SIZE)
        return out

    def extend(self, other: Self) -> None:
        before = len(self)
        super().extend(other)
        self._make_room(len(self))
        ffi.memmove(self.regions + before, other.regions, len(other) * _REGION_SIZE)

    def piece(self, at: int) -> Piece:
        return Piece(*self.row(at))

    def _make_room(self, count: int) -> None:
        if count > self._room:
            self._room = max(_LEAST, min(2 * count, LEAF + 1))
            larger = ffi.new("struct avmm_region[]", self._room)
            if self.regions is not None:
                ffi.memmove(larger, self.regions, ffi.sizeof(self.regions))
            self.regions = larger


class _Shown(Rows[_Leaf]):
    """All pieces, with an array of regions that native code finds each leaf's by."""

    def __init__(self) -> None:
        super().__init__(_Leaf)
        self.regions: Any = ffi.new("struct avmm_region[]", 1)
        self.watchers: dict[object, Callable[[], None]] = {}

    def changed(self, number: int) -> None:
        leaf, region = self.leaves[number], self.regions[number]
        base, size, *_ = leaf.row(-1)
        region.base, region.size = leaf.keys[0], base + size - leaf.keys[0]
        region.within, region.host = len(leaf), owners.address(leaf.regions)

    def moved(self) -> None:
        if len(self.leaves) > len(self.regions):
            self.regions = ffi.new("struct avmm_region[]", 2 * len(self.leaves))
        for number in range(len(self.leaves)):
            self.changed(number)
        for tell in self.watchers.values():
            tell()


class Pieces:
    """Some that have gone, or are there, at the time: to be looked at later, in whichever thread has time for it."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self._columns = [leaf.columns for leaf in leaves]

    def __iter__(self) -> Iterator[Piece]:
        for columns in self._columns:
            yield from map(Piece, *columns)


class Follower(Protocol):
    """Somebody who carries mappings out elsewhere: a device of the host."""

    def added(self, pieces: Sequence[Piece]) -> None:
        """These have come."""

    def removed(self, pieces: Pieces) -> None:
        """These have gone."""


class DomainTable:
    """What of a domain's mappings is memory. What is not (a BAR, a hole) is left out, so an access to it is a fault."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.followers: dict[object, Follower] = {}
        self._rows = _Shown()
        self.watchers = self._rows.watchers  # called when `count` or `regions` has changed

    @property
    def count(self) -> int:
        """Of `regions`."""
        return len(self._rows.leaves)

    @property
    def regions(self) -> Any:
        """`struct avmm_region[]`, each with the regions of mappings within it."""
        return self._rows.regions

    def add(self, mapping: Mapping) -> None:
        """A new mapping, which overlaps no other."""
        pieces = self._cut(mapping)
        for piece in pieces:
            self._rows.insert((*piece, self.memory.host_address(piece.gpa, piece.size)))
        if pieces:
            for follower in list(self.followers.values()):
                follower.added(pieces)

    def remove(self, start: int, end: int) -> None:
        """Forget all mappings in [start, end], which covers each of them whole."""
        gone = self._rows.cut(start, end)
        if gone:
            for follower in list(self.followers.values()):
                follower.removed(Pieces(gone))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def pieces(self) -> Pieces:
        """All that is mapped now, sorted."""
        return Pieces([leaf.copy() for leaf in self._rows.leaves])

    def find(self, address: int) -> Piece | None:
        """The piece that holds `address`."""
        if (place := self._rows.before(address)) is None:
            return None
        piece = place[0].piece(place[1])
        return piece if address - piece.base < piece.size else None

    def _cut(self, mapping: Mapping) -> list[Piece]:
        """A mapping as pieces of memory regions."""
        start, end = mapping.physical, mapping.physical + mapping.end - mapping.start + 1
        pieces = []
        for region in self.memory.regions:
            low, high = max(start, region.gpa), min(end, region.end)
            if low < high:
                perm = mapping.flags & ~MAP_WRITE if region.readonly else mapping.flags
                pieces.append(Piece(mapping.start + low - start, high - low, low, perm))
        return pieces
