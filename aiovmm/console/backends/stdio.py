"""Standard input and output that are no terminal: for `aiovmm run` in a script, unattended."""

from __future__ import annotations

import asyncio
import os
import stat
from typing import Protocol

from aiovmm.console.backends.duplex import CHUNK, DuplexBackend
from aiovmm.console.fds import OwnedFd
from aiovmm.console.stream import Console

__all__ = ["StdioBackend"]


class StdioBackend(DuplexBackend):
    """Descriptors that are pipes, sockets or files. They stay the caller's: they are not closed."""

    def __init__(self, console: Console, input_fd: int = 0, output_fd: int = 1) -> None:
        super().__init__(console)
        self._fds = (input_fd, output_fd)
        self._opened: list[_Descriptor] = []

    @property
    def place(self) -> str:
        return "standard input and output"

    async def _open(self) -> None:
        for fd, flags in zip(self._fds, (os.O_RDONLY, os.O_WRONLY), strict=True):
            self._opened.append(_descriptor(fd, flags))

    async def _read(self) -> bytes:
        return await self._opened[0].read(CHUNK)

    async def _write(self, data: bytes) -> None:
        await self._opened[1].write(data)

    async def _close(self) -> None:
        while self._opened:  # the last first: two duplicates of one file put its flags back in that order
            self._opened.pop().close()


class _Descriptor(Protocol):
    async def read(self, n: int = ...) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class _FileDescriptor:
    """A file or /dev/null, which the loop cannot watch and which does not make a thread wait for long."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def read(self, n: int = CHUNK) -> bytes:
        return await asyncio.to_thread(os.read, self._fd, n)

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await asyncio.to_thread(os.write, self._fd, view) :]

    def close(self) -> None:
        """The descriptor is the caller's."""


def _descriptor(fd: int, flags: int) -> _Descriptor:
    """By the kind of file: a regular one must not be reopened, which would begin at its first byte again."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd):
        return OwnedFd.reopen(fd, flags)
    return _FileDescriptor(fd)
