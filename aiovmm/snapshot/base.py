"""Memory that guests have in common: a file that each maps privately, so that it has the pages which it has not written to
with all others. The base is open for as long as any of them, or its template, is there."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Sequence
from itertools import accumulate

from aiovmm.errors import HostError
from aiovmm.memory import GuestMemory, MemoryRegion, Origin
from aiovmm.runtime.forks import keep_private, let_go
from aiovmm.snapshot.increment import Increment
from aiovmm.snapshot.pages import Copying, extents, keep, ram_of

__all__ = ["FIXED", "Base", "base_of"]


class Base:
    """`fd` has the memory of one guest, all of its RAM one piece after the other, and `increments`, the newest first, what is
    otherwise. They are closed when all who have asked for it by `use`, and its maker, have called `release`. `snapshot` is the
    identity of the one that it is, if it is any. From any thread."""

    def __init__(self, fd: int, increments: Sequence[Increment] = (), snapshot: str = "") -> None:
        self.fd = keep_private(fd)
        self.increments = tuple(increments)
        self.snapshot = snapshot
        self._users = 1
        self._lock = threading.Lock()

    def use(self) -> None:
        """One more."""
        with self._lock:
            assert self._users > 0, "somebody has it"
            self._users += 1

    def release(self) -> None:
        """One less; the last closes it."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        os.close(let_go(self.fd))
        for increment in self.increments:
            increment.close()

    def map(self, ram: list[tuple[int, int]], *, prefault: bool = False) -> GuestMemory:
        """For a guest of its own, with `prefault` all that is there at once. Raises HostError."""
        self.use()
        memory = GuestMemory.copy_on_write(ram, self.fd, self.release)
        try:
            moved = self._apply(memory)
            if self.snapshot:
                memory.origin = Origin(self.snapshot, moved)
            if prefault:
                self._prefault(memory)
        except BaseException:
            memory.close()
            raise
        return memory

    def _apply(self, memory: GuestMemory) -> bytes:
        """Read what increments have; which pages that are."""
        if not self.increments:
            return b""
        done = bytearray(len(self.increments[0].changed))
        for increment in self.increments:
            increment.apply(memory, done)
        return bytes(done)

    def flat(self) -> Base:
        """The same without increments, for those who are to have it in common: a copy of what is in it. The caller's to release.
        In a thread. Raises HostError."""
        size = os.fstat(self.fd).st_size
        memory = self.map([(0, size)])
        try:
            return _copied(memory, size, self.snapshot)
        finally:
            memory.close()

    def _prefault(self, memory: GuestMemory) -> None:
        for region in memory.regions:
            for offset, size in extents(self.fd, region.offset, region.offset + region.size):
                region.mapping.populate(offset - region.offset, size)


_PAGE = 4096
FIXED = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def base_of(memory: GuestMemory, copying: Copying | None = None) -> Base:
    """A base of a guest's memory, which the guest has no more. In a thread. Raises HostError.

    Memory that is one memfd already becomes the base as it is. Anonymous memory, which is what a guest has by default, for it
    costs half of the page faults, is copied once: pages with something in them, each given back when it has been, so that at no
    time there is much more memory than before. Huge pages are copied, too: those who fork want them to be few and shared. And
    so is memory in several files: zones, and modules that came later.
    """
    ram = ram_of(memory)
    try:
        if _is_one_file(ram):
            return Base(os.dup(ram[0].fd))
        return _copied(memory, sum(region.size for region in ram), copying=copying)
    except OSError as exc:
        if isinstance(exc, HostError):
            raise
        raise HostError("making a base of guest memory", exc.errno or 0) from exc


def _is_one_file(ram: list[MemoryRegion]) -> bool:
    """Of small pages, with all of `ram` one piece after the other."""
    ends = accumulate((region.size for region in ram), initial=0)
    together = all(
        region.shared and region.fd == ram[0].fd and region.offset == at for region, at in zip(ram, ends, strict=False)
    )
    return together and os.fstat(ram[0].fd).st_blksize == _PAGE


def _copied(memory: GuestMemory, size: int, snapshot: str = "", *, copying: Copying | None = None) -> Base:
    fd = os.memfd_create("aiovmm-base", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        keep(memory, fd, release=True, copying=copying)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, FIXED)
    except BaseException:
        os.close(fd)
        raise
    return Base(fd, (), snapshot)
