"""The RAM of one VM."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from aiovmm.errors import HostError
from aiovmm.memory import trimming
from aiovmm.memory.mapping import MAP_NORESERVE, bind, huge_flags, mapped, private, shown
from aiovmm.memory.region import Backing, MemoryRegion, Origin
from aiovmm.memory.table import RegionTable
from aiovmm.native.mapping import GuestMapping
from aiovmm.native.seals import seal_size
from aiovmm.runtime.forks import keep_private, let_go

_Filling = Callable[[GuestMapping, int, int], None]
_NO_HUGE_PAGES = "reserve huge pages in /proc/sys/vm/nr_hugepages, or leave hugepages off"


class _Closed(Protocol):
    def close(self) -> None:
        """With the memory."""


class GuestMemory(RegionTable):
    """The RAM of one VM (and whatever else is memory: pmem, shared regions). Owns its mappings, and its memfd if it is
    shared."""

    def __init__(self) -> None:
        super().__init__()
        self._aside: dict[int, tuple[MemoryRegion, memoryview]] = {}  # by gpa
        self._retired: list[tuple[MemoryRegion, memoryview]] = []
        self._fds: list[int] = []
        self._released: Callable[[], None] | None = None
        self.origin: Origin | None = None
        self.tracker: _Closed | None = None
        """Who knows what was written to it since it was saved, once somebody does (aiovmm.snapshot.dirty)."""

    def __del__(self, count: Callable[[None], None] = trimming.left.append) -> None:
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
        filling = _filling(wanted) if backing.prefault else _leave
        try:
            if backing.shared or backing.hugepages or backing.fd >= 0:
                self._add_fd(ranges, later, name, backing, filling)
            else:
                for gpa, size in ranges:
                    self._map_private(gpa, size, backing, filling)
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
        filling: _Filling,
    ) -> None:
        """All ranges in one memfd, or in the file that there is."""
        if backing.fd >= 0:
            fd = backing.fd
            self._fds.append(fd)
        else:
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | huge_flags(backing))
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
            bind(region.mapping, backing)
            if number < len(ranges):
                filling(region.mapping, 0, size)
            offset += size

    def _map_private(self, gpa: int, size: int, backing: Backing, filling: _Filling) -> None:
        self._check_place(gpa, size)
        mapping, start = private(gpa, size, backing)
        try:
            filling(mapping, start, size)
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
        flags |= 0 if reserve else MAP_NORESERVE
        prot = mmap.PROT_READ | (0 if readonly else mmap.PROT_WRITE)
        try:
            mapping = mapped(fd, size, flags, prot, offset) if ram else shown(fd, size, flags, prot, offset)
        except OSError as exc:
            hint = _NO_HUGE_PAGES if reserve else ""
            raise HostError(f"mapping {size} bytes of guest memory", exc.errno or 0, hint) from exc
        region = MemoryRegion(gpa, size, fd, offset, mapping, mapping.host, readonly, shared, ram)
        self._insert(region, memoryview(mapping))
        return region

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

    def close(self) -> None:
        """Unmap and close everything. Idempotent. A mapping with a live view goes when that view does."""
        trimming.left.append(None)
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


def _filling(wanted: Callable[[], bool]) -> _Filling:
    from aiovmm.memory.populating import populate  # few ask for that

    return partial(populate, wanted)


def _leave(mapping: GuestMapping, start: int, size: int) -> None:
    """What is not prefaulted comes when it is touched."""
