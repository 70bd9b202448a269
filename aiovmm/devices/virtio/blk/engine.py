"""How a disk's requests reach the host's kernel: io_uring, or threads where it is refused."""

from __future__ import annotations

import asyncio
import enum
import errno
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from aiovmm.devices.virtio.blk.rings import SharedRing, join
from aiovmm.errors import MORE_THREADS, HostError
from aiovmm.native import ffi
from aiovmm.runtime.hands import Hands
from aiovmm.runtime.threads import Thread, name_this_thread

__all__ = ["THREADS", "Engine", "IoKind", "Processors", "check_processors", "ended"]

_REFUSED = (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINVAL)
THREADS = 4
_SWITCH = Path("/proc/sys/kernel/io_uring_disabled")
_OUT = (errno.EMFILE, errno.ENFILE)  # nothing can be imported then, and the next one will say so
_told: set[int] = set()
T = TypeVar("T")
Processors = tuple[int, ...]
"""Of the host, by their numbers."""


class IoKind(enum.Enum):
    """AUTO is io_uring; or threads, if the host's kernel, a container's seccomp filter or a limit refuses it, and for a file on a
    file system that may have whoever begins a transfer wait: the loop's thread, and the kernel's, which all disks share."""

    AUTO = "auto"
    URING = "io_uring"
    THREADS = "threads"


class Engine:
    """One disk's share of the loop's io_uring, for `entries` requests in flight, and threads for what io_uring does not do.

    `ring` is None where threads do it all. To be opened and used in the loop's thread. Work may be given to threads that run on
    some processors of the host alone.
    """

    def __init__(self, kind: IoKind, entries: int, name: str) -> None:
        self.ring: SharedRing | None = None
        self._entries = entries
        self._name = name
        self._threads: dict[Processors | None, Hands] = {}
        if kind is not IoKind.THREADS:
            self._join_ring(kind)

    def _join_ring(self, kind: IoKind) -> None:
        try:
            self.ring = join(self._entries)
        except OSError as exc:
            if kind is IoKind.URING or exc.errno not in _REFUSED:
                hint = "leave the choice to the monitor, which then uses threads" if kind is IoKind.URING else ""
                raise HostError("setting up io_uring", exc.errno or 0, hint) from None
            _tell(exc.errno)

    @property
    def kind(self) -> IoKind:
        """What reads and writes go through: URING or THREADS."""
        return IoKind.THREADS if self.ring is None or self.ring.given_up else IoKind.URING

    @property
    def native_ring(self) -> Any:
        """`struct avmm_blk_ring *` or NULL."""
        return ffi.NULL if self.ring is None else self.ring.native

    def threads(self, processors: Processors | None) -> Hands:
        """For calls that block, on these processors of the host or on any; started when first needed."""
        if processors not in self._threads:
            begin = name_this_thread if processors is None else partial(_begin_on, processors)
            self._threads[processors] = Hands(THREADS, self._name, begin)
        return self._threads[processors]

    def submit(
        self, work: Callable[..., T], *arguments: Any, processors: Processors | None = None
    ) -> asyncio.Future[T]:
        """Have a thread do `work`, on these processors of the host or on any. Raises HostError if the host has no thread for it;
        then it is not done, now or later."""
        try:
            return asyncio.wrap_future(self.threads(processors).submit(work, *arguments))
        except RuntimeError:
            raise HostError("starting a thread", errno.EAGAIN, MORE_THREADS) from None

    async def call(self, work: Callable[..., T], *arguments: Any) -> T:
        """Have a thread do `work`. When this ends, also by cancellation, the thread is done with it.
        Raises HostError if there is none."""
        return await ended(self.submit(work, *arguments))

    def leave(self, disk: Any) -> None:
        """Give the share of the ring back that this `struct avmm_blk *` had. Nothing may be in flight. Idempotent."""
        ring, self.ring = self.ring, None
        if ring is not None:
            ring.leave(self._entries, disk)

    def close(self) -> None:
        """End its threads, which may block; after `leave`. Idempotent."""
        for threads in self._threads.values():
            threads.shutdown()
        self._threads.clear()


def _tell(error: int) -> None:
    """That threads do it, once for each reason: it is the host's affair, and not a disk's."""
    if error in _told or error in _OUT:
        return
    _told.add(error)
    from aiovmm.runtime.log import Log  # for hosts that refuse it

    Log().warning(
        f"io_uring is refused ({os.strerror(error)}{_why(error)}): threads do disks' requests, which is slower"
    )


def _why(error: int) -> str:
    try:
        switch = _SWITCH.read_text().strip()
    except OSError:  # a kernel before 6.6
        switch = "0"
    if error != errno.EPERM:
        return ""
    if switch == "0":
        return "; a filter of system calls does that, as a container's"
    who = " but to root and the group kernel.io_uring_group" if switch == "1" else ""
    return (
        f"; kernel.io_uring_disabled is {switch}, which forbids it{who}: `sysctl kernel.io_uring_disabled=0` allows it"
    )


def _begin_on(processors: Processors) -> None:
    name_this_thread()
    os.sched_setaffinity(0, processors)


def check_processors(processors: Iterable[Processors]) -> None:
    """Raise HostError for those that no thread of this process can run on."""
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            for some in processors:
                os.sched_setaffinity(0, some)
        except (OSError, OverflowError) as exc:
            errors.append(exc)

    thread = Thread(attempt, name="aiovmm affinity")  # which ends: it is bound by that
    thread.start()
    thread.join()
    if errors:
        there = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        hint = f"disk.queue_affinity= has processors of the host; this process may use {there}"
        raise HostError("binding threads of a disk", getattr(errors[0], "errno", None) or errno.EINVAL, hint)


async def ended(future: asyncio.Future[T]) -> T:
    """The result of what a thread does. A cancellation is passed on when the thread has ended, and not before."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled
    return future.result()
