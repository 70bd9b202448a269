"""The io_uring that the disks of an event loop share.

One for each disk would cost each of them 25 KiB of the host's memory, a descriptor and a watcher in the loop, and the kernel the
work of taking it apart later. What a disk needs of a ring is a place for each completion that it can have at once, 16 bytes, and
that is what it is given: no completion is ever without a place, and a disk whose storage hangs keeps no more than its own. When
all places of a ring are given away there is another one, eight times as large.

What the kernel does not take for the moment, for want of memory, is submitted again and again. Where it still does not after
PATIENCE, be it that it never will, the ring is given up: its disks are told, and threads do their requests from then on.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary, ref

from aiovmm.native import ffi, lib
from aiovmm.runtime.forks import keep_private, let_go

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiovmm.config import DiskConfig
    from aiovmm.runtime.awake import Awake

__all__ = ["PATIENCE", "Member", "SharedRing", "join", "keep"]

_FIRST, _MOST = 512, 65536  # completions of a ring; io_uring has at most that
_GROWTH = 8
_RETRY = 0.002  # seconds until what the kernel did not take for want of memory is submitted again
PATIENCE = 5.0
"""Seconds of that: a guest's driver has thirty, and more, for a request."""


class Member(Protocol):
    """Of a ring: a disk at work."""

    @property
    def disk(self) -> Any:
        """The `struct avmm_blk *`."""

    def published(self, mask: int) -> None:
        """Requests of its have ended, on the queues in `mask`."""

    def refused(self, error: int) -> None:
        """The kernel takes nothing from the ring any more, says this errno: threads do what comes."""

    def forsaken(self) -> None:
        """The loop that ran it is closed, and its device too: nobody hears of its requests any more."""


class SharedRing:
    """One ring, with places for `completions` at least. `native` is the `struct avmm_blk_ring *`, `free` the places that no disk
    has; it is one of `among` when it is to go. Used in the loop's thread alone. Raises OSError where io_uring is refused."""

    def __init__(self, completions: int, among: list[SharedRing]) -> None:
        self.native = _taken(completions) or _opened(completions)
        self.fd: int = keep_private(self.native.uring.fd)
        self._places: int = self.native.uring.cq_entries - lib.AVMM_BLK_CANCELS
        self.free = self._places
        self._loop = ref(asyncio.get_running_loop())  # which may be closed before a disk that was on it lets go
        self._among = among
        self._members: dict[Any, Member] = {}
        self._mask = ffi.new("uint64_t *")
        self._retry: asyncio.TimerHandle | None = None
        self._refused: Awake | None = None  # the kernel takes nothing

    @property
    def given_up(self) -> bool:
        """Whether threads do its disks' requests."""
        return bool(self.native.given_up)

    def attach(self, member: Member) -> None:
        """From now on it hears of its requests, and lives at least until `detach`."""
        if not self._members:
            asyncio.get_running_loop().add_reader(self.fd, self._completed)
        self._members[member.disk] = member

    def detach(self, member: Member) -> None:
        """None of its requests is in flight. Idempotent; also where no loop runs."""
        self._tell(lib.avmm_blk_ring_next(self.native, self._mask))  # or native code would keep it in its list
        if self._members.pop(member.disk, None) is None or self._members:
            return
        if (loop := self._open_loop()) is not None:
            loop.remove_reader(self.fd)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = self._refused = None
        self._close_unused()

    def leave(self, places: int, disk: Any) -> None:
        """A disk gives back what `join` gave it. It has detached, unless its loop was closed under it."""
        self.free += places
        if self._open_loop() is None and (member := self._members.pop(disk, None)) is not None:
            member.forsaken()
        self._close_unused()

    def _open_loop(self) -> asyncio.AbstractEventLoop | None:
        loop = self._loop()
        return None if loop is None or loop.is_closed() else loop

    def _close_unused(self) -> None:
        """Once it is nobody's, and the last request that somebody left behind has ended."""
        if self.free < self._places or self._members:
            return
        if self.native.uring.fd >= 0:
            self._among.remove(self)
            let_go(self.fd)
            _let_go(self.native)

    def heed(self, mask: int) -> None:
        """What native code tells with the mask of one disk of the ring itself, and of the other disks."""
        if mask & lib.AVMM_BLK_AGAIN and self._retry is None:
            from aiovmm.runtime.awake import Awake  # for who is refused

            self._refused = self._refused or Awake.begun(PATIENCE)
            self._retry = asyncio.get_running_loop().call_later(_RETRY, self._try_again)
        if mask & lib.AVMM_BLK_OTHERS:
            self._tell(lib.avmm_blk_ring_next(self.native, self._mask))

    def _completed(self) -> None:
        self._tell(lib.avmm_blk_ring_reap(self.native, self._mask))

    def _tell(self, disk: Any) -> None:
        """This disk, and those after it."""
        while disk:
            mask = self._mask[0]
            try:
                self._members[disk].published(mask & ~lib.AVMM_BLK_OTHERS)
            except Exception as exc:  # is not to be the fault of another disk, on whose behalf this was called
                if (loop := self._open_loop()) is not None:
                    loop.call_exception_handler({"message": "telling a disk of its requests", "exception": exc})
            if not mask & lib.AVMM_BLK_OTHERS:
                return
            disk = lib.avmm_blk_ring_next(self.native, self._mask)

    def _try_again(self) -> None:
        self._retry = None
        self._completed()
        if not self.native.uring.pending:
            self._refused = None
        elif self._refused is not None and self._refused.look() is None:
            self._give_up()
        else:
            self.heed(lib.AVMM_BLK_AGAIN)

    def _give_up(self) -> None:
        for member in list(self._members.values()):
            member.refused(self.native.refused)
        self._tell(lib.avmm_blk_ring_give_up(self.native, self._mask))


_kept: list[Any] | None = None
"""Rings that nobody has, of a process that can make none any more; None in any other."""


def keep(disks: Iterable[DiskConfig]) -> None:
    """From now on this process may be refused any ring: it has one for such disks, as far as there can be, and closes none. To be
    called in the thread that uses it."""
    global _kept
    _kept = _kept or []
    places = sum(disk.num_queues * disk.queue_size for disk in disks) + lib.AVMM_BLK_CANCELS
    with suppress(OSError):
        _kept.append(_opened(min(places, _MOST)))


def _taken(completions: int) -> Any:
    """One of those that were kept, the smallest that will do."""
    fitting = [ring for ring in _kept or () if ring.uring.cq_entries >= completions]
    ring = min(fitting, key=lambda ring: ring.uring.cq_entries, default=None)
    if ring is not None and _kept is not None:
        _kept.remove(ring)
    return ring


def _let_go(ring: Any) -> None:
    if _kept is not None and not ring.given_up:
        _kept.append(ring)
    else:
        lib.avmm_blk_ring_close(ring)


def _opened(completions: int) -> Any:
    """Raises OSError."""
    ring = ffi.new("struct avmm_blk_ring *")
    if error := -lib.avmm_blk_ring_open(ring, completions):
        raise OSError(error, os.strerror(error))
    return ring


_rings: WeakKeyDictionary[asyncio.AbstractEventLoop, list[SharedRing]] = WeakKeyDictionary()


def join(places: int) -> SharedRing:
    """The ring of the running event loop that has so many for one disk. Raises OSError where io_uring is refused."""
    rings = _rings.setdefault(asyncio.get_running_loop(), [])
    ring = next((ring for ring in rings if ring.free >= places and not ring.given_up), None)
    if ring is None:
        ring = _another(rings, places + lib.AVMM_BLK_CANCELS)
        rings.append(ring)
    ring.free -= places
    return ring


def _another(rings: list[SharedRing], least: int) -> SharedRing:
    grown = min(_MOST, rings[-1].native.uring.cq_entries * _GROWTH) if rings else _FIRST
    try:
        return SharedRing(max(least, grown), rings)
    except OSError:
        if grown <= least:
            raise
        return SharedRing(least, rings)  # a limit, perhaps
