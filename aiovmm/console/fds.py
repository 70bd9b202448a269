"""File descriptors that the event loop watches, owned so that the loop forgets them before they are closed.

Under uvloop a descriptor that is closed while it is watched, and whose number is used again, aborts the process.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

from aiovmm.console.modes import undisturbed
from aiovmm.runtime.nowait import read_now, write_now
from aiovmm.runtime.worker import Worker

__all__ = ["Descriptor", "OwnedFd", "open_end", "open_output"]


class Descriptor(Protocol):
    """One side of standard input and output, or of what stands for them."""

    async def read(self, n: int = ...) -> bytes:
        """1..`n` bytes; b"" at the end."""

    async def write(self, data: bytes) -> None:
        """Write all of `data`."""

    def write_some(self, data: bytes) -> int:
        """Write what fits now; the number of bytes."""

    def close(self) -> None:
        """Let go of it. Idempotent."""


def open_end(fd: int, flags: int) -> Descriptor:
    """By the kind of file: a regular one must not be reopened, which would begin at its first byte again."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd):
        return OwnedFd.reopen(fd, flags)
    return FileDescriptor(fd)


def open_output(fd: int, on_lost: Callable[[OSError], None] | None) -> Descriptor:
    """`open_end` for writing. With `on_lost` its writes do not fail: it hears of the first error, and what follows is dropped."""
    end = open_end(fd, os.O_WRONLY)
    return end if on_lost is None else _LosableOutput(end, on_lost)


class _LosableOutput:
    """An output that is done without once it has failed."""

    def __init__(self, end: Descriptor, on_lost: Callable[[OSError], None]) -> None:
        self._end = end
        self._on_lost = on_lost
        self._lost = False
        self.read = end.read
        self.close = end.close

    async def write(self, data: bytes) -> None:
        try:
            if not self._lost:
                await self._end.write(data)
        except OSError as exc:
            self._lose(exc)

    def write_some(self, data: bytes) -> int:
        try:
            return len(data) if self._lost else self._end.write_some(data)
        except OSError as exc:
            self._lose(exc)
            return len(data)

    def _lose(self, error: OSError) -> None:
        self._lost = True
        self._on_lost(error)


class OwnedFd:
    """A non-blocking descriptor of a terminal, pipe or socket, with `read` and `write` that wait on the loop.

    `shared`: its open file is somebody else's as well. What that had of O_NONBLOCK before, `close` sets back.
    """

    def __init__(self, fd: int, *, shared: bool = False) -> None:
        self._fd = fd
        self._shared = shared
        self._was_blocking = os.get_blocking(fd)
        self._guard: Callable[[], AbstractContextManager[None]] = undisturbed if os.isatty(fd) else nullcontext
        os.set_blocking(fd, False)

    @classmethod
    def reopen(cls, fd: int, flags: int) -> OwnedFd:
        """A descriptor of our own for the file behind `fd`: an open file of our own if we may, else a duplicate.

        With an open file of our own, whoever shares `fd` never sees O_NONBLOCK, not even if we are killed.
        """
        try:
            return cls(os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError:
            return cls(os.dup(fd), shared=True)

    def fileno(self) -> int:
        """The descriptor's number."""
        return self._fd

    async def read(self, n: int = 65536) -> bytes:
        """1..`n` bytes; b"" at the end, which for a terminal is also that its other side is gone, or that this process is in its
        background (EIO)."""
        loop = asyncio.get_running_loop()
        while True:
            await self._ready(loop.add_reader, loop.remove_reader)
            try:
                with self._guard():
                    return read_now(self._fd, n) if self._shared else os.read(self._fd, n)
            except BlockingIOError:
                continue
            except OSError as exc:
                if exc.errno == errno.EIO:
                    return b""
                raise

    async def write(self, data: bytes) -> None:
        """Write all of `data`. Raises OSError if the other side is gone."""
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        while view:
            view = view[self.write_some(view) :]
            if view:
                await self._ready(loop.add_writer, loop.remove_writer)

    def write_some(self, data: bytes | memoryview) -> int:
        """Write what fits now; the number of bytes, 0 if none."""
        try:
            with self._guard():
                return write_now(self._fd, data) if self._shared else os.write(self._fd, data)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Idempotent. Tasks that use the descriptor have ended before."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        if self._was_blocking:
            os.set_blocking(fd, True)
        os.close(fd)

    async def _ready(self, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
        ready = asyncio.get_running_loop().create_future()
        add(self._fd, _set, ready)
        try:
            await ready
        finally:
            remove(self._fd)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class FileDescriptor:
    """A file or /dev/null, which the loop cannot watch and which does not make a thread wait for long. It stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._calls = Worker("aiovmm: stdio")

    async def read(self, n: int = 65536) -> bytes:
        data: bytes = await self._calls.submit(partial(os.read, self._fd, n))
        return data

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self._calls.submit(partial(os.write, self._fd, view)) :]

    def write_some(self, data: bytes | memoryview) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        """The descriptor is the caller's."""
