"""The descriptors of this process, one set for all its guests, and what guests and peers may have opened on their behalf.

    0 ................ 3/4 of RLIMIT_NOFILE ................ RLIMIT_NOFILE
    |     the pool: each guest has a share of it    |   the reserve    |

A guest that asks for connections, and a peer that makes them, costs descriptors here. Where they run out everybody fails: a
neighbour's reset, which needs new ones, and the program's own files. So whoever opens one for a guest or a peer draws it from the
guest's share first, and refuses where that is used up; the reserve is never given out so. What the configuration bounds
(queues of a TAP, interrupt vectors, the one connection to a back end, however often it comes back) is not drawn.

A guest that resets itself gives its machine's descriptors back and takes as many again a moment later, and many may do so at
once: what they had is `kept` for them meanwhile, and nobody's to draw.
"""

from __future__ import annotations

import os
import resource
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["PROCESS", "Descriptors", "Share"]


def _limit() -> int:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


def _in_use() -> int | None:
    """How many are open. Linux before 6.2 does not count them for us: there it is what lies below the lowest free one, which is
    less where some were closed since. None: there is no free one."""
    try:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
    except OSError:
        return None
    os.close(fd)
    try:
        return max(fd, os.stat("/proc/self/fd").st_size)
    except OSError:  # no /proc
        return fd


class Descriptors:
    """The pool of one process. `limit` and `in_use` tell what the kernel says at the moment."""

    def __init__(self, limit: Callable[[], int] = _limit, in_use: Callable[[], int | None] = _in_use) -> None:
        self._limit = limit
        self._in_use = in_use
        self._shares: weakref.WeakSet[Share] = weakref.WeakSet()
        self._kept = 0

    def share(self) -> Share:
        """A new one, until it is closed or nobody refers to it."""
        share = Share(self)
        self._shares.add(share)
        return share

    @property
    def pool(self) -> int:
        """Descriptors that all shares together may hold."""
        return self._limit() * 3 // 4

    @property
    def fair(self) -> int:
        """What one share may hold: there is always one left for who comes next."""
        return self.pool // (len(self._shares) + 1)

    def may_open(self, share: Share, count: int) -> bool:
        """Whether `share` may hold `count` more."""
        pool = self.pool
        if share.held + count > self.fair or sum(s.held for s in self._shares) + count > pool:
            return False
        used = self._in_use()  # others of this process open files as well
        return used is not None and used + self._kept + count <= pool

    @contextmanager
    def kept(self, count: int) -> Iterator[None]:
        """`count` of those that are closed in here are for whoever opens them again in here."""
        self._kept += count
        try:
            yield
        finally:
            self._kept -= count


class Share:
    """What one guest or place may have opened. `take` before a descriptor is opened, `give` when it has been closed."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self.held = 0

    @property
    def most(self) -> int:
        """How many it may hold at present."""
        return self._descriptors.fair

    def take(self, count: int = 1) -> bool:
        """`count` more, or none and False."""
        if not self._descriptors.may_open(self, count):
            return False
        self.held += count
        return True

    def close(self) -> None:
        """Its holder opens nothing more: what it might have had is the others'. Idempotent."""
        self._descriptors._shares.discard(self)

    def give(self, count: int = 1) -> None:
        """They are closed, or never were opened."""
        self.held -= count


PROCESS = Descriptors()
"""This process's: there is one table of descriptors, whoever made the guests."""
