"""What the back ends with one other side share: output until the guest ends, input for as long as there is any."""

from __future__ import annotations

import asyncio
import errno
from abc import abstractmethod

from aiovmm.console.backends.base import ConsoleBackend
from aiovmm.console.race import first
from aiovmm.console.stream import Console
from aiovmm.console.terminal import AttachEnd
from aiovmm.errors import ConsoleEnded

__all__ = ["CHUNK", "GONE", "DuplexBackend"]

CHUNK = 4096
"""Bytes of input that are read at once."""

GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.EIO})
"""What a write says when nobody will read it any more."""


class DuplexBackend(ConsoleBackend):
    """All output, from the beginning of the history, to `_write`; input from `_read`, whose end does not end the output."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._output = console.reader()

    @property
    def lost(self) -> int:
        """Bytes of output that the other side was too slow for."""
        return self._output.lost

    @abstractmethod
    async def _read(self) -> bytes:
        """The next input; b"" at its end."""

    @abstractmethod
    async def _write(self, data: bytes) -> None: ...

    async def _run(self) -> AttachEnd:
        return await first(self._show(), self._take())

    async def _show(self) -> AttachEnd:
        try:
            async for data in self._output:
                await self._write(data)
        except OSError as exc:
            if exc.errno in GONE or isinstance(exc, ConnectionError):
                return AttachEnd.TERMINAL_CLOSED
            raise
        return AttachEnd.GUEST_ENDED if self._console.closed else AttachEnd.DETACHED

    async def _take(self) -> AttachEnd:
        try:
            while data := await self._read():
                await self._console.send(data)
        except (ConsoleEnded, OSError):
            pass  # the output ends by itself; an input that cannot be read has ended
        never: asyncio.Future[AttachEnd] = asyncio.get_running_loop().create_future()
        return await never

    def _finish(self) -> None:
        self._output.close()

    def _progress(self) -> object:
        return self._output.position
