"""Memory that is mapped from a file or from none, with its address here for native code and the kernel."""

from __future__ import annotations

import mmap
import os
from typing import Any

from aiovmm.native import ffi, lib, owners

__all__ = ["GuestMapping", "Mapping"]

_MADV_DONTDUMP = 16  # <asm-generic/mman-common.h>; in the mmap module of some Pythons only


class Mapping(mmap.mmap):
    """An mmap.mmap that knows its `host` address, which is good for as long as this object or a view of it is there."""

    host: int

    def __init__(self, *_args: Any, **_options: Any) -> None:
        """The arguments of mmap.mmap. Raises OSError. No child process gets it, nor the guest's memory with it; of one that is
        private each write here would first copy a page for the child."""
        self.madvise(mmap.MADV_DONTFORK)
        holder = ffi.from_buffer(self)
        self.host = owners.address(holder)
        ffi.release(holder)

    def close(self) -> None:
        """Unmap it; if somebody holds a view, the last of these does."""
        try:
            super().close()
        except BufferError:
            return


class GuestMapping(Mapping):
    """Memory that a guest or another process has a say in: an access that finds nothing behind it (the file was cut short, its
    file system is full, the disk failed) reads zeros from then on instead of ending the process (native/src/guard.h).

    `lost` tells; whoever serves the memory is to end what it belongs to.
    """

    _guard: Any = ffi.NULL
    _lost: int | None = None

    def __init__(self, *args: Any, prot: int = mmap.PROT_READ | mmap.PROT_WRITE, **options: Any) -> None:
        """The arguments of mmap.mmap. Raises OSError, MemoryError."""
        super().__init__(*args, prot=prot, **options)
        self.madvise(_MADV_DONTDUMP)  # what a guest keeps secret is in no core file of the host's
        self._writable = bool(prot & mmap.PROT_WRITE)
        self._watch()

    def _watch(self) -> None:
        self._guard = lib.avmm_guard_add(self.host, -(-len(self) // mmap.PAGESIZE) * mmap.PAGESIZE, self._writable)
        if self._guard == ffi.NULL:
            raise MemoryError("guarding a mapping")

    def populate(self, start: int, size: int) -> None:
        """Have these bytes there before they are touched. Raises OSError. Other threads go on meanwhile, which they do not under
        mmap.mmap's own `madvise` and MAP_POPULATE."""
        if error := lib.avmm_mem_populate(self.host + start, size):
            raise OSError(error, os.strerror(error))

    def show(self, fd: int, offset: int, *, shared: bool) -> None:
        """Have it be these bytes of a file from now on, of which it keeps no descriptor. Raises OSError."""
        if error := lib.avmm_mem_map(self.host, len(self), fd, offset, self._writable, shared):
            raise OSError(error, os.strerror(error))
        self.madvise(mmap.MADV_DONTFORK)
        self.madvise(_MADV_DONTDUMP)

    def blank(self) -> None:
        """Have it be zeros that are nobody's; of a file that it showed nothing is kept. Raises OSError."""
        if error := lib.avmm_mem_blank(self.host, len(self)):
            raise OSError(error, os.strerror(error))
        self.madvise(mmap.MADV_DONTFORK)

    def bind(self, node: int) -> None:
        """Have its pages come from this NUMA node of the host, and no other. Raises OSError."""
        if error := lib.avmm_mem_bind(self.host, len(self), node):
            raise OSError(error, os.strerror(error))

    @property
    def lost(self) -> int | None:
        """Where in the mapping the first access found nothing; None while all is there."""
        address = lib.avmm_guard_lost(self._guard) if self._guard != ffi.NULL else 0
        return address - self.host if address else self._lost

    def tell_loss(self, eventfd: int, flag: Any = ffi.NULL) -> None:
        """When it is lost, or if it is, signal `eventfd` and set the `uint32_t *` to 1; both stay the caller's. -1: nobody."""
        if self._guard != ffi.NULL:
            lib.avmm_guard_tell(self._guard, eventfd, flag)

    def close(self) -> None:
        """Unmap it; if somebody holds a view, the last of these does, and it is guarded until then."""
        if self._guard == ffi.NULL:
            return
        self._lost = self.lost
        self._unwatch()
        try:
            mmap.mmap.close(self)
        except BufferError:
            self._watch()

    def _unwatch(self, remove: Any = lib.avmm_guard_remove, nobody: Any = ffi.NULL) -> None:
        guard, self._guard = self._guard, nobody
        if guard != nobody:
            remove(guard)

    def __del__(self) -> None:
        self._unwatch()  # before mmap.mmap unmaps it, which comes after this
