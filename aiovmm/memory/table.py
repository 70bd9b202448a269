"""Regions by guest-physical address: bounds-checked views of them, and the table that native code walks."""

from __future__ import annotations

import bisect
from typing import Any

from aiovmm.errors import GuestFault, UsageError
from aiovmm.memory.region import PAGE_SIZE, MemoryRegion
from aiovmm.native import ffi, owners

_PERM_RW = 3


class RegionTable:
    """What memory there is, and where: sorted, without overlaps."""

    def __init__(self) -> None:
        self._regions: list[MemoryRegion] = []
        self._views: list[memoryview] = []
        self._bases: list[int] = []
        self._table = ffi.new("struct avmm_mem *")
        self._array: Any = ffi.NULL

    def _check_place(self, gpa: int, size: int, offset: int = 0) -> None:
        if size <= 0 or gpa < 0 or (gpa | size | offset) % PAGE_SIZE:
            raise UsageError(f"memory region {gpa:#x} + {size:#x} (file offset {offset:#x}) is not page-aligned")
        if any(gpa < r.end and r.gpa < gpa + size for r in self._regions):
            raise UsageError(f"memory region {gpa:#x} + {size:#x} overlaps another")

    def _insert(self, region: MemoryRegion, view: memoryview) -> None:
        i = bisect.bisect_left(self._bases, region.gpa)
        self._bases.insert(i, region.gpa)
        self._regions.insert(i, region)
        self._views.insert(i, view)
        self._publish()

    def _take_out(self, region: MemoryRegion) -> memoryview:
        i = self._regions.index(region)
        view = self._views[i]
        del self._regions[i], self._views[i], self._bases[i]
        self._publish()
        return view

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """All regions, sorted by guest-physical address."""
        return tuple(self._regions)

    @property
    def size(self) -> int:
        """Bytes in all regions."""
        return sum(r.size for r in self._regions)

    @property
    def table(self) -> Any:
        """`struct avmm_mem *`; changes in place when regions come and go."""
        return self._table

    @property
    def native_regions(self) -> Any:
        """`struct avmm_region[]`, sorted: what `table` points at now, and its owner."""
        return self._array

    def slice(self, address: int, size: int) -> memoryview:
        """Writable view of `size` bytes at guest-physical `address`. Raises GuestFault."""
        i = bisect.bisect_right(self._bases, address) - 1
        if i < 0 or size < 0:
            raise GuestFault(address, size)
        region = self._regions[i]
        start = address - region.gpa
        if start + size > region.size:
            raise GuestFault(address, size)
        return self._views[i][start : start + size]

    def pieces(self, address: int, size: int) -> list[tuple[int, memoryview]]:
        """(offset, writable view) of what [address, address + size) consists of, where one region follows another. Raises
        GuestFault."""
        found, done = [], 0
        while done < size:
            i = bisect.bisect_right(self._bases, address + done) - 1
            length = 0 if i < 0 else min(size - done, self._regions[i].end - address - done)
            if length <= 0:
                raise GuestFault(address, size)
            found.append((done, self.slice(address + done, length)))
            done += length
        return found

    def host_address(self, address: int, size: int) -> int:
        """Host virtual address of [address, address + size). Raises GuestFault."""
        i = bisect.bisect_right(self._bases, address) - 1
        if i < 0 or size < 0 or address + size > self._regions[i].end:
            raise GuestFault(address, size)
        return self._regions[i].host + address - self._regions[i].gpa

    def read(self, address: int, size: int) -> bytes:
        """A copy of `size` bytes at `address`. Raises GuestFault."""
        return bytes(self.slice(address, size))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data` at `address`. Raises GuestFault before any byte is written."""
        view = self.slice(address, len(data))
        if view.readonly:
            raise GuestFault(address, len(data), "writable guest memory")
        view[:] = data

    def _publish(self) -> None:
        """Give native code the new table. Old arrays are kept: a ring operation in another thread may still read one."""
        array = ffi.new("struct avmm_region[]", max(len(self._regions), 1))
        for slot, r in zip(array, self._regions, strict=False):
            slot.base, slot.size, slot.host, slot.perm = r.gpa, r.size, r.host, 1 if r.readonly else _PERM_RW
        owners.keep(self._table, array)
        self._array = array
        self._table.count = 0
        owners.link(self._table, regions=array)
        self._table.count = len(self._regions)
