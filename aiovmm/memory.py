"""Guest memory: private, or a memfd mapped shared that other processes can be given.

Private memory is anonymous, which is what the kernel gives huge pages for of itself: loading a kernel then costs a page
fault for 2 MiB instead of 4 KiB, and so does what the guest touches, twice (the processor's nested page tables have large
entries where guest-physical and host addresses agree modulo 2 MiB). Shared memory has them only if the host's administrator
has allowed it (/sys/kernel/mm/transparent_hugepage/shmem_enabled).

`slice` hands out bounds-checked, writable views; a view keeps its mapping alive, so memory is never unmapped under
somebody's feet. Native code walks the same regions through `table` (see native/src/mem.h). Anything that rings and devices
use to reach memory has the shape of `AddressSpace`: guest memory itself, or a translation in front of it (an IOMMU).
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from aiovmm.errors import GuestFault, HostError, StateError, UsageError
from aiovmm.native import ffi, lib, owners, room
from aiovmm.native.mapping import GuestMapping
from aiovmm.native.seals import seal_size
from aiovmm.runtime import crew
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.forks import keep_private, let_go
from aiovmm.runtime.threads import Thread

__all__ = ["PAGE_SIZE", "AddressSpace", "Backing", "GuestMemory", "MemoryRegion", "Origin"]

PAGE_SIZE = 4096
_HUGE_PAGE = 2 << 20
_MAP_NORESERVE = 0x4000  # <asm-generic/mman-common.h>; in the mmap module only from CPython 3.13 on
_PERM_RW = 3
_NO_HUGE_PAGES = "reserve huge pages in /proc/sys/vm/nr_hugepages, or leave hugepages off"

_MFD_HUGE_SHIFT = 26  # <linux/memfd.h>
_MOST_THREADS = 16
_PIECE = 256 << 20  # bytes, between which somebody may say that memory is not wanted any more
_Fill = Callable[[GuestMapping, int, int], None]


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
    """`size` bytes of guest-physical space at `gpa`, mapped here at `host`; backed by `fd` at `offset`, or by none (-1)."""

    gpa: int
    size: int
    fd: int
    offset: int
    mapping: GuestMapping
    host: int
    readonly: bool = False
    shared: bool = True  # stores are seen through the fd, so that other processes can be given it
    ram: bool = False  # else it is a device's (a pmem image), whose file is nobody's business but ours

    @property
    def end(self) -> int:
        """The first guest-physical address after the region."""
        return self.gpa + self.size


@dataclass(frozen=True)
class Backing:
    """What RAM is made of: private pages, `shared` ones that other processes can be given, or those of `fd`, a file that
    becomes the memory's. `hugepages` come from the host's reserve, of `hugepage_size` bytes or its default; `thp` are
    those that the kernel makes for private memory as it can. `prefault`: they are there at once; `reserve`: they are
    promised at once. `mergeable`: private pages that the kernel may hold once for several guests. `host_node`: whose
    memory it is, on a host with several."""

    shared: bool = True
    hugepages: bool = False
    hugepage_size: int | None = None
    prefault: bool = False
    reserve: bool = False
    thp: bool = True
    mergeable: bool = False
    fd: int = -1
    host_node: int | None = None


@dataclass(frozen=True, eq=False)
class Origin:
    """The snapshot, by its identity, whose pages a restored guest's memory shows where nobody has written. `moved` is a bitmap of
    pages that were put in otherwise: in the file they are not as they are in the snapshot."""

    snapshot: str
    moved: bytes


class _Closed(Protocol):
    def close(self) -> None:
        """With the memory."""


_left: list[None] = []
"""One for each GuestMemory that was closed, and one when it is no more: the objects of its guest refer to each other, so most of
what they had beside the mappings comes back when the collector has found them."""


class GuestMemory:
    """The RAM of one VM (and whatever else is memory: pmem, shared regions). Owns its mappings, and its memfd if it is
    shared."""

    def __init__(self) -> None:
        self._regions: list[MemoryRegion] = []
        self._views: list[memoryview] = []
        self._bases: list[int] = []
        self._aside: dict[int, tuple[MemoryRegion, memoryview]] = {}  # by gpa
        self._retired: list[tuple[MemoryRegion, memoryview]] = []
        self._fds: list[int] = []
        self._released: Callable[[], None] | None = None
        self.origin: Origin | None = None
        self.tracker: _Closed | None = None
        """Who knows what was written to it since it was saved, once somebody does (aiovmm.snapshot.dirty)."""
        self._table = ffi.new("struct avmm_mem *")
        self._array: Any = ffi.NULL

    def __del__(self, count: Callable[[None], None] = _left.append) -> None:
        count(None)  # wherever it is collected: one step

    @classmethod
    def create(
        cls,
        ranges: Sequence[tuple[int, int]],
        *,
        shared: bool = True,
        hugepages: bool = False,
        prefault: bool = False,
        thp: bool = True,
        mergeable: bool = False,
        hugepage_size: int | None = None,
        reserve: bool = False,
        name: str = "aiovmm-ram",
        wanted: Callable[[], bool] = lambda: True,
        later: Sequence[tuple[int, int]] = (),
    ) -> GuestMemory:
        """RAM at `ranges` of (gpa, size in bytes), page-aligned, all of one Backing, and at those that the guest has a use for
        `later`. Raises HostError, UsageError."""
        memory = cls()
        backing = Backing(shared, hugepages, hugepage_size, prefault, reserve, thp, mergeable)
        try:
            memory.add_ram(ranges, backing, later=later, name=name, wanted=wanted)
        except BaseException:
            memory.close()
            raise
        return memory

    @classmethod
    def copy_on_write(
        cls, ranges: Sequence[tuple[int, int]], fd: int, released: Callable[[], None] = lambda: None
    ) -> GuestMemory:
        """RAM at `ranges` with what the file `fd` has from its start, one range after the other; what is written is this memory's
        alone. `released` is called by `close`, or when this fails: until then `fd` stays open. Raises HostError, UsageError."""
        memory = cls()
        memory._released = released
        offset = 0
        try:
            for gpa, size in ranges:
                memory.map_fd(gpa, size, fd, offset, shared=False, ram=True)
                offset += size
        except BaseException:
            memory.close()
            raise
        return memory

    def add_ram(
        self,
        ranges: Sequence[tuple[int, int]],
        backing: Backing,
        *,
        later: Sequence[tuple[int, int]] = (),
        name: str = "aiovmm-ram",
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """More RAM, likewise. To prefault it takes a quarter of a second a GiB and more; it is given up, by StateError,
        once it is not `wanted`. What is for `later` is not. After an error the memory is to be closed."""
        total = sum(size for _, size in (*ranges, *later))
        fill = partial(_fill, wanted) if backing.prefault else _leave
        try:
            if backing.shared or backing.hugepages or backing.fd >= 0:
                self._add_fd(ranges, later, name, backing, fill)
            else:
                for gpa, size in ranges:
                    self._map_private(gpa, size, backing, fill)
                for gpa, size in later:
                    self._map_private(gpa, size, backing, _leave)
        except HostError:
            raise
        except OSError as exc:
            hint = _NO_HUGE_PAGES if backing.hugepages else ""
            raise HostError(f"allocating {total} bytes of guest memory", exc.errno or 0, hint) from exc

    def _add_fd(
        self,
        ranges: Sequence[tuple[int, int]],
        later: Sequence[tuple[int, int]],
        name: str,
        backing: Backing,
        fill: _Fill,
    ) -> None:
        """All ranges in one memfd, or in the file that there is."""
        if backing.fd >= 0:
            fd = backing.fd
            self._fds.append(fd)
        else:
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _huge_flags(backing))
            self._fds.append(keep_private(fd))
            os.ftruncate(fd, sum(size for _, size in (*ranges, *later)))
            seal_size(fd)
        if backing.reserve and backing.shared and not backing.hugepages:
            os.posix_fallocate(
                fd, 0, sum(size for _, size in ranges)
            )  # the kernel promises nothing of a file but what is there
        offset = 0
        for number, (gpa, size) in enumerate((*ranges, *later)):
            keep = backing.hugepages or backing.reserve
            region = self.map_fd(gpa, size, fd, offset, shared=backing.shared, reserve=keep, ram=True)
            _bind(region.mapping, backing)
            if number < len(ranges):
                fill(region.mapping, 0, size)
            offset += size

    def _map_private(self, gpa: int, size: int, backing: Backing, fill: _Fill) -> None:
        """Anonymous memory."""
        self._check_place(gpa, size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (0 if backing.reserve else _MAP_NORESERVE)
        mapping = GuestMapping(-1, size + _HUGE_PAGE, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        start = (gpa - mapping.host) % _HUGE_PAGE
        with contextlib.suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE if backing.thp else mmap.MADV_NOHUGEPAGE)
        try:
            if backing.mergeable:
                _let_merge(mapping)
            _bind(mapping, backing)
            fill(mapping, start, size)
        except BaseException:  # whose traceback would keep it
            mapping.close()
            raise
        host = mapping.host + start
        self._insert(
            MemoryRegion(gpa, size, -1, 0, mapping, host, shared=False, ram=True),
            memoryview(mapping)[start : start + size],
        )

    def map_fd(
        self,
        gpa: int,
        size: int,
        fd: int,
        offset: int = 0,
        *,
        shared: bool = True,
        readonly: bool = False,
        reserve: bool = False,
        ram: bool = False,
    ) -> MemoryRegion:
        """Map `size` bytes of `fd` (stays the caller's, `create`'s own excepted) at `gpa`. Raises HostError, UsageError.

        `reserve` has the kernel refuse now what it could not give later. Huge pages need that: there is a fixed number of
        them, and touching a page that is not to be had is a SIGBUS, which would end the process and all guests in it.
        """
        self._check_place(gpa, size, offset)
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        flags |= 0 if reserve else _MAP_NORESERVE
        prot = mmap.PROT_READ | (0 if readonly else mmap.PROT_WRITE)
        try:
            mapping = _mapped(fd, size, flags, prot, offset) if ram else _shown(fd, size, flags, prot, offset)
        except OSError as exc:
            hint = _NO_HUGE_PAGES if reserve else ""
            raise HostError(f"mapping {size} bytes of guest memory", exc.errno or 0, hint) from exc
        region = MemoryRegion(gpa, size, fd, offset, mapping, mapping.host, readonly, shared, ram)
        self._insert(region, memoryview(mapping))
        return region

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

    def unmap(self, region: MemoryRegion) -> None:
        """Take a region out. The mapping itself goes when its last view does."""
        self._take_out(region).release()
        region.mapping.close()

    def put_aside(self, region: MemoryRegion) -> None:
        """Take a region out whose mapping stays: devices may have something under way to it, and at these addresses of the host
        nothing else may come to be meanwhile. It goes with `close`."""
        self._aside[region.gpa] = region, self._take_out(region)

    def retire(self, region: MemoryRegion) -> None:
        """Likewise, for good; `blank` then lets go of its file."""
        self._retired.append((region, self._take_out(region)))

    def blank(self, region: MemoryRegion) -> None:
        """Of one that was retired, and that the guest does not see any more: let go of its file. What is under way to it goes
        nowhere. May block. Raises HostError; then the file stays mapped until `close`."""
        try:
            region.mapping.blank()
        except OSError as exc:
            raise HostError("unmapping a file", exc.errno or 0) from exc

    def bring_back(self, gpa: int) -> bool:
        """Put in again what was put aside there; whether anything was."""
        region, view = self._aside.pop(gpa, (None, None))
        if region is not None and view is not None:
            self._insert(region, view)
        return region is not None

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
        _left.append(None)
        tracker, self.tracker = self.tracker, None
        if tracker is not None:
            tracker.close()
        for gpa in list(self._aside):
            self.bring_back(gpa)
        while self._retired:
            region, view = self._retired.pop()
            view.release()
            region.mapping.close()
        for region in list(self._regions):
            self.unmap(region)
        for fd in self._fds:
            os.close(let_go(fd))
        self._fds.clear()
        released, self._released = self._released, None
        if released is not None:
            released()

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


def _leave(mapping: GuestMapping, start: int, size: int) -> None:
    """What is not prefaulted comes when it is touched."""


def _mapped(fd: int, size: int, flags: int, prot: int, offset: int) -> GuestMapping:
    """With a descriptor of its own for the file, as mmap.mmap has it."""
    return GuestMapping(fd, size, flags=flags, prot=prot, offset=offset)


def _shown(fd: int, size: int, flags: int, prot: int, offset: int) -> GuestMapping:
    """With none, so that nothing is kept of a file that goes while the mapping stays. One of huge pages may need an address that
    this is not at."""
    mapping = GuestMapping(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, prot=prot)
    try:
        mapping.show(fd, offset, shared=bool(flags & mmap.MAP_SHARED))
    except OSError as exc:
        mapping.close()
        if exc.errno != errno.EINVAL:
            raise
        return _mapped(fd, size, flags, prot, offset)
    return mapping


def _fill(wanted: Callable[[], bool], mapping: GuestMapping, start: int, size: int) -> None:
    """In pieces, and where there are several by as many threads as there are processors for this process: most of the time
    goes into clearing pages, which each does for itself."""
    pieces = iter(range(start, start + size, _PIECE))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for at in pieces:  # one step of a range's iterator is not divided between threads
                if errors:
                    return
                if not wanted():
                    raise StateError("guest memory is not wanted any more")
                mapping.populate(at, min(_PIECE, start + size - at))
        except BaseException as exc:
            errors.append(exc)

    helpers = min(len(os.sched_getaffinity(0)), _MOST_THREADS, -(-size // _PIECE)) - 1
    threads = [Thread(work, name="prefault") for _ in range(helpers)]
    with contextlib.suppress(RuntimeError):  # a host without room for threads: slow is better than never
        for thread in threads:
            thread.start()
    work()
    for thread in threads:
        if thread.ident is not None:
            thread.join()
    if errors:
        raise errors[0]


def _huge_flags(backing: Backing) -> int:
    """For memfd_create: pages of the host's default size, or of the one that is asked for."""
    if not backing.hugepages:
        return 0
    size = backing.hugepage_size
    return os.MFD_HUGETLB | (0 if size is None else size.bit_length() - 1 << _MFD_HUGE_SHIFT)


def _bind(mapping: GuestMapping, backing: Backing) -> None:
    if backing.host_node is None:
        return
    try:
        mapping.bind(backing.host_node)
    except OSError as exc:
        hint = "numactl -H shows the nodes there are; host_numa_node= names one of them"
        raise HostError(f"binding memory to node {backing.host_node}", exc.errno or 0, hint) from exc


def _let_merge(mapping: GuestMapping) -> None:
    try:
        mapping.madvise(mmap.MADV_MERGEABLE)
    except OSError as exc:
        raise HostError(
            "letting equal pages be merged", exc.errno or 0, "this kernel has no KSM: leave mergeable off"
        ) from exc


_MANY = 32  # guests that were closed or have gone, of which the C library may have kept a megabyte


_trimmed = False  # for many that had left, and not since


def _trim() -> bool:
    """Once so many have left and all is quiet, have the system get back what they had; and once more what was on its way then.
    True: that is to come."""
    global _trimmed
    many = len(_left) >= _MANY
    if many or _trimmed:
        _left.clear()
        lib.avmm_mem_trim()
        room.give_back()
    _trimmed = many
    return many


crew.at_rest.append(_trim)
