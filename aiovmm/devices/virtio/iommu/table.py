"""The mappings of a domain as native code reads them: addresses of a device to addresses of the host, in one sorted array.

It is changed in place, between two native calls: rings are served by the event loop's thread, as it is (native/src/ring.h).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from aiovmm.devices.virtio.iommu.mappings import Mapping
from aiovmm.devices.virtio.iommu.wire import MAP_WRITE
from aiovmm.memory import GuestMemory
from aiovmm.native import ffi

__all__ = ["DomainTable", "Piece"]

_REGION_SIZE = ffi.sizeof("struct avmm_region")


class Piece(NamedTuple):
    """`size` bytes at the device's address `base` are those at guest-physical `gpa`; `perm` is MAP_READ and MAP_WRITE."""

    base: int
    size: int
    gpa: int
    perm: int


class Follower(Protocol):
    """Somebody who carries mappings out elsewhere: a device of the host."""

    def added(self, pieces: Sequence[Piece]) -> None:
        """These have come."""

    def removed(self, pieces: Sequence[Piece]) -> None:
        """These have gone."""


class DomainTable:
    """What of a domain's mappings is memory. What is not (a BAR, a hole) is left out, so an access to it is a fault."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.count = 0
        self.regions: Any = ffi.new("struct avmm_region[]", 64)
        self.watchers: dict[object, Callable[[], None]] = {}  # called when `count` or `regions` has changed
        self.followers: dict[object, Follower] = {}
        self._capacity = 64
        self._bases: list[int] = []
        self._pieces: list[Piece] = []

    def add(self, mapping: Mapping) -> None:
        """A new mapping, which overlaps no other."""
        pieces = self._cut(mapping)
        if not pieces:
            return
        at = bisect.bisect_left(self._bases, mapping.start)
        self._make_room(at, len(pieces))
        for slot, piece in zip(itertools.count(at), pieces, strict=False):
            region = self.regions[slot]
            region.base, region.size, region.perm = piece.base, piece.size, piece.perm
            region.host = self.memory.host_address(piece.gpa, piece.size)
        self._bases[at:at] = [piece.base for piece in pieces]
        self._pieces[at:at] = pieces
        self._changed()
        for follower in list(self.followers.values()):
            follower.added(pieces)

    def remove(self, start: int, end: int) -> None:
        """Forget all mappings in [start, end], which covers each of them whole."""
        first, last = bisect.bisect_left(self._bases, start), bisect.bisect_right(self._bases, end)
        if first == last:
            return
        ffi.memmove(self.regions + first, self.regions + last, (self.count - last) * _REGION_SIZE)
        self.count -= last - first
        gone = self._pieces[first:last]
        del self._bases[first:last], self._pieces[first:last]
        self._changed()
        for follower in list(self.followers.values()):
            follower.removed(gone)

    @property
    def pieces(self) -> Sequence[Piece]:
        """All that is mapped, sorted."""
        return self._pieces

    def find(self, address: int) -> Piece | None:
        """The piece that holds `address`."""
        i = bisect.bisect_right(self._bases, address) - 1
        if i < 0:
            return None
        piece = self._pieces[i]
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

    def _make_room(self, at: int, count: int) -> None:
        if self.count + count > self._capacity:
            self._capacity = 2 * (self.count + count)
            larger = ffi.new("struct avmm_region[]", self._capacity)
            ffi.memmove(larger, self.regions, self.count * _REGION_SIZE)
            self.regions = larger
        ffi.memmove(self.regions + at + count, self.regions + at, (self.count - at) * _REGION_SIZE)
        self.count += count

    def _changed(self) -> None:
        for tell in self.watchers.values():
            tell()
