"""Mappings of each kind that memory is made of."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os

from aiovmm.errors import HostError
from aiovmm.memory.region import Backing
from aiovmm.native.mapping import GuestMapping

MAP_NORESERVE = 0x4000  # <asm-generic/mman-common.h>; in the mmap module only from CPython 3.13 on
_HUGE_PAGE = 2 << 20
_MFD_HUGE_SHIFT = 26  # <linux/memfd.h>


def private(gpa: int, size: int, backing: Backing) -> tuple[GuestMapping, int]:
    """Anonymous memory, and the offset in it at which `gpa` is: equal to it modulo the size of a huge page."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (0 if backing.reserve else MAP_NORESERVE)
    mapping = GuestMapping(-1, size + _HUGE_PAGE, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    with contextlib.suppress(OSError):  # a kernel without them
        mapping.madvise(mmap.MADV_HUGEPAGE if backing.thp else mmap.MADV_NOHUGEPAGE)
    try:
        if backing.mergeable:
            _let_merge(mapping)
        bind(mapping, backing)
    except BaseException:  # whose traceback would keep it
        mapping.close()
        raise
    return mapping, (gpa - mapping.host) % _HUGE_PAGE


def mapped(fd: int, size: int, flags: int, prot: int, offset: int) -> GuestMapping:
    """With a descriptor of its own for the file, as mmap.mmap has it."""
    return GuestMapping(fd, size, flags=flags, prot=prot, offset=offset)


def shown(fd: int, size: int, flags: int, prot: int, offset: int) -> GuestMapping:
    """With none, so that nothing is kept of a file that goes while the mapping stays. One of huge pages may need an address that
    this is not at."""
    mapping = GuestMapping(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, prot=prot)
    try:
        mapping.show(fd, offset, shared=bool(flags & mmap.MAP_SHARED))
    except OSError as exc:
        mapping.close()
        if exc.errno != errno.EINVAL:
            raise
        return mapped(fd, size, flags, prot, offset)
    return mapping


def huge_flags(backing: Backing) -> int:
    """For memfd_create: pages of the host's default size, or of the one that is asked for."""
    if not backing.hugepages:
        return 0
    size = backing.hugepage_size
    return os.MFD_HUGETLB | (0 if size is None else size.bit_length() - 1 << _MFD_HUGE_SHIFT)


def bind(mapping: GuestMapping, backing: Backing) -> None:
    """To the host's node that is asked for, if one is. Raises HostError."""
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
