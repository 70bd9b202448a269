"""Guest memory: a memfd mapped shared, so that other processes can be given it and snapshots can be taken of it.

`slice` hands out bounds-checked, writable views; a view keeps its mapping alive, so memory is never unmapped under
somebody's feet. Native code walks the same regions through `table` (see native/src/mem.h). Anything that rings and devices
use to reach memory has the shape of `AddressSpace`: guest memory itself, or a translation in front of it (an IOMMU).
"""

from __future__ import annotations

import bisect
import errno
import mmap
import os
from collections.abc import Sequence
from typing import Any, Protocol

from aiovmm.dataclass import dataclass
from aiovmm.errors import GuestFault, HostError, UsageError
from aiovmm.native import ffi

__all__ = ["PAGE_SIZE", "AddressSpace", "GuestMemory", "MemoryRegion"]

PAGE_SIZE = 4096
_MAP_NORESERVE = 0x4000  # <asm-generic/mman-common.h>; in the mmap module only from CPython 3.13 on
_PERM_RW = 3
_NO_HUGE_PAGES = "reserve huge pages in /proc/sys/vm/nr_hugepages, or leave hugepages off"


class AddressSpace(Protocol):
    """How rings and devices reach guest memory. Addresses are the guest's own (GPA), or IOVAs behind an IOMMU."""

    @property
    def table(self) -> Any:
        """`struct avmm_mem *` for native code. Valid as long as the address space; its content may change in place."""

    def slice(self, address: int, size: int) -> memoryview:
        """Writable view of [address, address + size). Raises GuestFault if any byte of it is not memory."""

    def read(self, address: int, size: int) -> bytes:
        """A copy of `size` bytes. Raises GuestFault."""

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data`. Raises GuestFault before any byte is written."""


@dataclass(frozen=True, eq=False)
class MemoryRegion:
    """`size` bytes of guest-physical space at `gpa`, backed by `fd` at `offset` and mapped here at `host`."""

    gpa: int
    size: int
    fd: int
    offset: int
    mapping: mmap.mmap
    host: int
    readonly: bool = False
    shared: bool = True  # stores are seen through the fd, so that other processes can be given it

    @property
    def end(self) -> int:
        """The first guest-physical address after the region."""
        return self.gpa + self.size


class GuestMemory:
    """The RAM of one VM (and whatever else is memory: pmem, shared regions). Owns its memfd and mappings."""

    def __init__(self) -> None:
        self._regions: list[MemoryRegion] = []
        self._views: list[memoryview] = []
        self._bases: list[int] = []
        self._fds: list[int] = []
        self._table = ffi.new("struct avmm_mem *")
        self._keep: list[Any] = []

    @classmethod
    def create(
        cls,
        ranges: Sequence[tuple[int, int]],
        *,
        shared: bool = True,
        hugepages: bool = False,
        prefault: bool = False,
        name: str = "aiovmm-ram",
    ) -> GuestMemory:
        """RAM at `ranges` of (gpa, size in bytes), page-aligned, all in one memfd. Raises HostError, UsageError."""
        memory = cls()
        flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB if hugepages else 0)
        total = sum(size for _, size in ranges)
        fd = -1
        try:
            fd = os.memfd_create(name, flags)
            memory._fds.append(fd)
            os.ftruncate(fd, total)
            offset = 0
            for gpa, size in ranges:
                memory.map_fd(gpa, size, fd, offset, shared=shared, prefault=prefault, reserve=hugepages)
                offset += size
        except OSError as exc:
            memory.close()
            if isinstance(exc, HostError):
                raise
            hint = "free memory, or give the guest less" if exc.errno == errno.ENOMEM else ""
            if hugepages:
                hint = _NO_HUGE_PAGES
            raise HostError(f"allocating {total} bytes of guest memory", exc.errno or 0, hint) from exc
        except BaseException:
            memory.close()
            raise
        return memory

    def map_fd(
        self,
        gpa: int,
        size: int,
        fd: int,
        offset: int = 0,
        *,
        shared: bool = True,
        readonly: bool = False,
        prefault: bool = False,
        reserve: bool = False,
    ) -> MemoryRegion:
        """Map `size` bytes of `fd` (stays the caller's, `create`'s own excepted) at `gpa`. Raises HostError, UsageError.

        `reserve` has the kernel refuse now what it could not give later. Huge pages need that: there is a fixed number of
        them, and touching a page that is not to be had is a SIGBUS, which would end the process and all guests in it.
        """
        if size <= 0 or gpa < 0 or (gpa | size | offset) % PAGE_SIZE:
            raise UsageError(f"memory region {gpa:#x} + {size:#x} (file offset {offset:#x}) is not page-aligned")
        if any(gpa < r.end and r.gpa < gpa + size for r in self._regions):
            raise UsageError(f"memory region {gpa:#x} + {size:#x} overlaps another")
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        flags |= (0 if reserve else _MAP_NORESERVE) | (mmap.MAP_POPULATE if prefault else 0)
        prot = mmap.PROT_READ | (0 if readonly else mmap.PROT_WRITE)
        try:
            mapping = mmap.mmap(fd, size, flags=flags, prot=prot, offset=offset)
        except OSError as exc:
            hint = _NO_HUGE_PAGES if reserve else ""
            raise HostError(f"mapping {size} bytes of guest memory", exc.errno or 0, hint) from exc
        holder = ffi.from_buffer(mapping)
        host = int(ffi.cast("uintptr_t", holder))
        ffi.release(holder)
        region = MemoryRegion(gpa, size, fd, offset, mapping, host, readonly, shared)
        i = bisect.bisect_left(self._bases, gpa)
        self._bases.insert(i, gpa)
        self._regions.insert(i, region)
        self._views.insert(i, memoryview(mapping))
        self._publish()
        return region

    def unmap(self, region: MemoryRegion) -> None:
        """Take a region out. The mapping itself goes when its last view does."""
        i = self._regions.index(region)
        view = self._views[i]
        del self._regions[i], self._views[i], self._bases[i]
        self._publish()
        view.release()
        _close_mapping(region.mapping)

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

    def close(self) -> None:
        """Unmap and close everything. Idempotent. A mapping with a live view goes when that view does."""
        for region in list(self._regions):
            self.unmap(region)
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _publish(self) -> None:
        """Give native code the new table. Old arrays are kept: a ring operation in another thread may still read one."""
        array = ffi.new("struct avmm_region[]", max(len(self._regions), 1))
        for slot, r in zip(array, self._regions, strict=False):
            slot.base, slot.size, slot.host, slot.perm = r.gpa, r.size, r.host, 1 if r.readonly else _PERM_RW
        self._keep.append(array)
        self._table.count = 0
        self._table.regions = array
        self._table.count = len(self._regions)


def _close_mapping(mapping: mmap.mmap) -> None:
    try:
        mapping.close()
    except BufferError:  # somebody holds a view: the garbage collector unmaps after the last one
        return
