"""File descriptors that the event loop watches, owned so that the loop forgets them before they are closed.

Under uvloop a descriptor that is closed while it is watched, and whose number is used again, aborts the process.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any

__all__ = ["OwnedFd"]


class OwnedFd:
    """A non-blocking descriptor of a terminal, pipe or socket, with `read` and `write` that wait on the loop.

    `was_blocking`: O_NONBLOCK belongs to the open file, which others (a shell) may share; `close` sets it back.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._was_blocking = os.get_blocking(fd)
        os.set_blocking(fd, False)

    @classmethod
    def reopen(cls, fd: int, flags: int) -> OwnedFd:
        """A descriptor of our own for the file behind `fd`: an open file of our own if we may, else a duplicate.

        With an open file of our own, whoever shares `fd` never sees O_NONBLOCK, not even if we are killed.
        """
        try:
            return cls(os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError:
            return cls(os.dup(fd))

    def fileno(self) -> int:
        return self._fd

    async def read(self, n: int = 65536) -> bytes:
        """1..`n` bytes; b"" at the end, which for a terminal is also that its other side is gone (EIO)."""
        loop = asyncio.get_running_loop()
        while True:
            await self._ready(loop.add_reader, loop.remove_reader)
            try:
                return os.read(self._fd, n)
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
            return os.write(self._fd, data)
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
