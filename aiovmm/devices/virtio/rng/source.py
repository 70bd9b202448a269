"""Where entropy comes from: the host's urandom, which never blocks; whatever can be polled; the rest, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import stat
import threading
from pathlib import Path
from typing import ClassVar, Protocol

from aiovmm.errors import MORE_THREADS, HostError
from aiovmm.runtime.threads import Thread, name_this_thread

__all__ = ["EntropySource", "ImmediateSource", "PolledSource", "ThreadedSource", "open_source"]

_URANDOM = os.makedev(1, 9)  # Documentation/admin-guide/devices.txt


class EntropySource(Protocol):
    """One reader at a time. After a cancelled `read` nothing is written into its views any more."""

    async def read(self, views: list[memoryview]) -> int:
        """Wait for entropy and fill `views` (at least one byte of room, at most IOV_MAX views) from their start; how many
        bytes, at least 1. Raises HostError when the source fails or has ended."""

    def close(self) -> None:
        """Idempotent."""


def open_source(path: Path) -> EntropySource:
    """Open the file, FIFO or device at `path`. Raises HostError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO need not have a writer yet
    except OSError as exc:
        raise HostError("opening the entropy source", exc.errno or 0, "rng.src names it", str(path)) from exc
    try:
        return _source(fd, str(path))
    except BaseException:
        os.close(fd)
        raise


def _source(fd: int, path: str) -> EntropySource:
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise HostError("opening the entropy source", errno.EISDIR, "rng.src names it", path)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == _URANDOM:
        return ImmediateSource.of(fd, path)
    if _can_be_polled(fd):
        return PolledSource(fd, path)
    os.set_blocking(fd, True)
    return ThreadedSource(fd, path)


def _can_be_polled(fd: int) -> bool:
    with select.epoll() as poller:
        try:
            poller.register(fd, select.EPOLLIN)
        except PermissionError:  # what epoll_ctl(2) says of regular files and of devices that have no poll, like hwrng
            return False
    return True


class _FileSource:
    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def failed(self, errno_: int) -> HostError:
        """The error of a read; 0 is the end of the file."""
        if errno_ == 0:
            return HostError("reading entropy", errno.ENODATA, "the source has ended", self.path)
        return HostError("reading entropy", errno_, path=self.path)

    def _read_now(self, views: list[memoryview]) -> int:
        try:
            done = self._read_into(views)
        except BlockingIOError:
            raise
        except OSError as exc:
            raise self.failed(exc.errno or errno.EIO) from exc
        if done == 0:
            raise self.failed(0)
        return done

    def _read_into(self, views: list[memoryview]) -> int:
        try:
            return os.readv(self.fd, views)
        except OSError as exc:
            if exc.errno != errno.EFAULT:
                raise
        # Guest memory that is not there: no fault of the source's. The copy finds it lost, as any access does, and the VM ends.
        view = next(view for view in views if view)
        data = os.read(self.fd, len(view))
        view[: len(data)] = data
        return len(data)


class ImmediateSource(_FileSource):
    """A descriptor that never blocks, so that native code may read it as well. The process has one, whoever reads it."""

    _one: ClassVar[ImmediateSource | None] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _holders = 0

    @classmethod
    def of(cls, fd: int, path: str) -> ImmediateSource:
        """The process's, which `fd` becomes if there is none. Each `of` has a `close`."""
        with cls._lock:
            if cls._one is None:
                cls._one = cls(fd, path)
            else:
                os.close(fd)
            cls._one._holders += 1
            return cls._one

    def close(self) -> None:
        """Its holder needs it no more."""
        with self._lock:
            self._holders -= 1
            if self._holders <= 0:
                if ImmediateSource._one is self:
                    ImmediateSource._one = None
                super().close()

    async def read(self, views: list[memoryview]) -> int:
        """See EntropySource."""
        return self._read_now(views)


class PolledSource(_FileSource):
    """A FIFO, socket or device that says when it is readable. Read straight into guest memory, without blocking."""

    async def read(self, views: list[memoryview]) -> int:
        """See EntropySource."""
        while True:
            await self._readable()  # first, for a FIFO that has not had a writer yet is at its end, but not readable
            try:
                return self._read_now(views)
            except BlockingIOError:  # somebody else reads it too
                continue

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self.fd, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self.fd)


class ThreadedSource(_FileSource):
    """A file or device whose reads may block. Each read is a thread's, into memory of its own: one that blocks for ever keeps
    neither guest memory nor the end of the VM waiting. What a cancelled reader did not take is there for the next."""

    def __init__(self, fd: int, path: str) -> None:
        super().__init__(fd, path)
        self.label = "rng"
        """The name of its threads."""
        self._reading: asyncio.Future[bytes] | None = None
        self._left = memoryview(b"")

    async def read(self, views: list[memoryview]) -> int:
        """See EntropySource."""
        if not self._left:
            if self._reading is None:
                self._reading = self._start(sum(map(len, views)))
            reading = self._reading
            await asyncio.wait([reading])  # whoever is cancelled leaves it to the next
            self._reading = None
            self._left = memoryview(reading.result())
        done = 0
        for view in views:
            part = self._left[: len(view)]
            view[: len(part)] = part
            self._left = self._left[len(part) :]
            done += len(part)
        return done

    def _start(self, size: int) -> asyncio.Future[bytes]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        fd = self._own()

        def work() -> None:
            name_this_thread()
            outcome: bytes | HostError
            try:
                outcome = os.read(fd, size) or self.failed(0)
            except OSError as exc:
                outcome = self.failed(exc.errno or errno.EIO)
            finally:
                os.close(fd)
            with contextlib.suppress(RuntimeError):  # the loop was closed while this read blocked
                loop.call_soon_threadsafe(_settle, future, outcome)

        try:
            Thread(work, name=self.label).start()
        except RuntimeError:
            os.close(fd)
            raise HostError("starting a thread", errno.EAGAIN, MORE_THREADS, self.path) from None
        return future

    def _own(self) -> int:
        """The thread's: `close` may come while it reads."""
        try:
            return os.dup(self.fd)
        except OSError as exc:
            raise self.failed(exc.errno or errno.EMFILE) from exc


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _settle(future: asyncio.Future[bytes], outcome: bytes | HostError) -> None:
    if isinstance(outcome, HostError):
        future.set_exception(outcome)
        future.exception()  # it is raised to the next reader, if there is one
    else:
        future.set_result(outcome)
