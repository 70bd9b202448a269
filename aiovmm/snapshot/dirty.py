"""Which pages of a guest's memory were written to since it was last saved.

KVM's dirty log has the processors' writes only, and devices here write from this process: native code, io_uring, Python. So the
page tables of the process are asked, by which all of them go (native/src/dirty.h). It costs nothing before the first snapshot
that asks for it, and then one page fault for each page that is written to between two snapshots.
"""

from __future__ import annotations

import errno
import os

from aiovmm.errors import HostError, SnapshotError
from aiovmm.memory import GuestMemory
from aiovmm.native import ffi, lib, owners
from aiovmm.runtime.forks import keep_private, let_go
from aiovmm.snapshot.pages import PAGE, ram_of

__all__ = ["DirtyPages", "bits_of"]

_TOO_OLD = (
    "needs userfaultfd's asynchronous write protection (Linux 6.7, on arm64 6.10) on this host: take whole snapshots"
)
_SHARED = "needs private memory, and this guest's is shared, of a file, or of huge pages: leave those options out"
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOTTY}


def bits_of(size: int) -> int:
    """Bytes of a bitmap with one bit for each page of `size` bytes."""
    return -(-size // (8 * PAGE))


class DirtyPages:
    """Of one guest's memory, from its machine's making on. All calls are in a thread, while the guest stands still.

    Snapshots are known by their identities. `origin` is the one whose pages this memory shows where nobody has written, if it is
    any guest's that was restored; `last` the one since which every write is known.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._regions = ram_of(memory)
        self._size = bits_of(sum(region.size for region in self._regions))
        self._moved = bytearray(self._size)
        self._pending = bytearray(self._size)
        self._fd = -1
        self.origin = self.last = ""
        if memory.origin is not None:
            self.origin = memory.origin.snapshot
            self._moved[: len(memory.origin.moved)] = memory.origin.moved

    @classmethod
    def of(cls, memory: GuestMemory) -> DirtyPages:
        """The one of this memory, or a new one that knows of nothing yet, if memory came or went since."""
        there = memory.tracker
        if isinstance(there, cls) and there._regions == ram_of(memory):
            return there
        if there is not None:
            there.close()
        memory.tracker = made = cls(memory)
        return made

    def refuse_unknown(self, base: str, where: object) -> None:
        """Raises SnapshotError if it is not known what was written since the snapshot `base`, which is at `where`."""
        if base not in (self.last, self.origin) or not base:
            raise SnapshotError(
                f"it is not known what the guest has written since the snapshot at {where}: an increment can be had over the "
                "snapshot that it was restored from, or the last that was taken by track=True or base="
            )

    def expected(self) -> int:
        """About how many pages `written` would tell of now that are there. The guest may run. Raises HostError."""
        if self._fd < 0 and not self.origin:
            return 0
        how = lib.AVMM_DIRTY_LOOK if self._fd >= 0 else lib.AVMM_DIRTY_OWN
        return self._scan(bytearray(self._size), self._moved, how)

    def written(self, memory: GuestMemory, base: str = "") -> bytearray:
        """A bitmap of what was written since the snapshot `base`, if there is one. From here on all that is written is known.
        Raises SnapshotError for memory or a host that it cannot be known of, HostError."""
        assert ram_of(memory) == self._regions, "none came or went since `of`"
        changed = self._own() if self.origin else bytearray(self._size)
        if self.origin:
            self._next_moved = bytes(changed)
        if not self._watch(needed=base != self.origin or not base):
            return changed
        self._scan(self._pending, self._moved, lib.AVMM_DIRTY_PROTECT)
        return changed if base == self.origin and base != self.last else bytearray(self._pending)

    def taken(self, snapshot: str) -> None:
        """What `written` told of last is in the snapshot of this identity, for good."""
        if self.origin:
            self._moved[:] = self._next_moved
        if self._fd >= 0:
            self.last = snapshot
            self._pending[:] = bytes(self._size)

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(let_go(fd))

    _next_moved = b""

    def _own(self) -> bytearray:
        """Pages that are not the origin's, or once were not."""
        found = bytearray(self._size)
        self._scan(found, self._moved, lib.AVMM_DIRTY_OWN)
        return found

    def _watch(self, *, needed: bool) -> bool:
        """Whether writes are known from now on; raises SnapshotError for a host that cannot, if it is `needed`."""
        if self._fd >= 0:
            return True
        if any(region.shared or (region.fd >= 0 and not self.origin) for region in self._regions):
            raise SnapshotError(f"an incremental snapshot {_SHARED}")
        fd = lib.avmm_dirty_open()
        if fd < 0:
            if -fd not in _CANNOT:
                raise HostError("tracking what a guest writes", -fd)
            if needed:
                raise SnapshotError(f"an incremental snapshot {_TOO_OLD}")
            return False
        self._fd = keep_private(fd)
        try:
            for region in self._regions:
                if error := lib.avmm_dirty_watch(fd, region.host, region.size):
                    raise HostError("tracking what a guest writes", error)
        except BaseException:
            self.close()
            raise
        return True

    def _scan(self, changed: bytearray, moved: bytearray, how: int) -> int:
        """How many of the pages that it finds are there."""
        number = there = 0
        for region in self._regions:
            fields = {"host": region.host, "size": region.size, "number": number, "of_file": region.fd >= 0, "how": how}
            scan = ffi.new("struct avmm_dirty *", fields)
            owners.link(scan, marks=owners.view(changed), moved=owners.view(moved))
            if error := lib.avmm_dirty_scan(scan):
                raise HostError("looking for what a guest has written", error)
            number += region.size // PAGE
            there += int(scan.there)
        return there
