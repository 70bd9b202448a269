"""How a disk's requests reach the host's kernel: io_uring, or threads where it is refused."""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiovmm.errors import HostError
from aiovmm.native import ffi, lib
from aiovmm.runtime.forks import keep_private, let_go
from aiovmm.runtime.threads import name_this_thread

__all__ = ["THREADS", "Engine", "IoKind", "ended"]

_REFUSED = (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINVAL)
THREADS = 4
T = TypeVar("T")


class IoKind(enum.Enum):
    """AUTO is io_uring, or threads if the host's kernel, a container's seccomp filter or a limit refuses it."""

    AUTO = "auto"
    URING = "io_uring"
    THREADS = "threads"


class Engine:
    """The io_uring of one disk, for `entries` requests in flight, and threads for what io_uring does not do.

    `ring` is `struct avmm_uring *` or NULL. To be opened and used in the loop's thread.
    """

    def __init__(self, kind: IoKind, entries: int, name: str) -> None:
        self.ring: Any = ffi.NULL
        self._name = name
        self._threads: ThreadPoolExecutor | None = None
        if kind is not IoKind.THREADS:
            self._open_ring(kind, entries)

    def _open_ring(self, kind: IoKind, entries: int) -> None:
        ring = ffi.new("struct avmm_uring *")
        error = -lib.avmm_uring_open(ring, entries)
        if not error:
            self.ring = ring
            keep_private(ring.fd)
        elif kind is IoKind.URING or error not in _REFUSED:
            hint = "leave the choice to the monitor, which then uses threads" if kind is IoKind.URING else ""
            raise HostError("setting up io_uring", error, hint)

    @property
    def kind(self) -> IoKind:
        """What reads and writes go through: URING or THREADS."""
        return IoKind.THREADS if self.ring == ffi.NULL else IoKind.URING

    @property
    def threads(self) -> ThreadPoolExecutor:
        """For calls that block; started when first needed."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, self._name, name_this_thread)
        return self._threads

    def submit(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Have a thread do `work`. Raises HostError if the host has no thread for it; then it is not done, now or later."""
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        future = asyncio.wrap_future(outcome)
        try:
            self.threads.submit(_carry_out, outcome, work, arguments)
        except RuntimeError:
            # The executor has queued it all the same, for a thread that it has already: whoever is first decides.
            if outcome.cancel():
                raise HostError("starting a thread", errno.EAGAIN) from None
        return future

    async def call(self, work: Callable[..., T], *arguments: Any) -> T:
        """Have a thread do `work`. When this ends, also by cancellation, the thread is done with it.
        Raises HostError if there is none."""
        return await ended(self.submit(work, *arguments))

    def close(self) -> None:
        """Nothing may be in flight. Idempotent."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        if self.ring != ffi.NULL:
            let_go(self.ring.fd)
            lib.avmm_uring_close(self.ring)
            self.ring = ffi.NULL


def _carry_out(outcome: concurrent.futures.Future[T], work: Callable[..., T], arguments: tuple[Any, ...]) -> None:
    if not outcome.set_running_or_notify_cancel():
        return
    try:
        outcome.set_result(work(*arguments))
    except BaseException as exc:
        outcome.set_exception(exc)


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
