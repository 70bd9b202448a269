"""The other end of a console's unix socket: a terminal in one process, the VM in another."""

from __future__ import annotations

import asyncio
import os

from aiovmm.console.attach import run_session
from aiovmm.console.keys import DEFAULT_DETACH
from aiovmm.console.terminal import AttachEnd, Terminal
from aiovmm.errors import ConsoleEnded, HostError
from aiovmm.runtime.awake import awake_timeout
from aiovmm.runtime.stream_socket import require_connected, streams_to

__all__ = ["attach_socket"]

_CLOSE = 1.0  # seconds for what was typed last to go out
_HINT = "is its VM running, with socket=PATH for a console?"


async def attach_socket(
    path: str | os.PathLike[str], *, terminal: Terminal | None = None, detach: bytes = DEFAULT_DETACH
) -> AttachEnd:
    """Join `terminal` (None: standard input and output) to the console that listens at `path`; see `attach_console`.

    The window's size does not go over a plain byte stream. Raises HostError if nobody listens there.
    """
    try:
        reader, writer = await streams_to(path)
    except OSError as exc:
        raise HostError("attach to the console", exc.errno or 0, _HINT, str(path)) from exc
    try:
        return await run_session(terminal or Terminal(), _SocketSide(reader, writer), detach)
    finally:
        writer.close()
        try:
            async with awake_timeout(_CLOSE):
                await writer.wait_closed()
        except (OSError, TimeoutError):  # TimeoutError is an OSError; both mean that it took no more
            writer.transport.abort()


class _SocketSide:
    """A console at the other end of a stream as the far side of a terminal."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        try:
            return await self._reader.read(65536)
        except ConnectionError:
            return b""

    async def send(self, data: bytes) -> None:
        try:
            require_connected(self._writer)
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError as exc:
            raise ConsoleEnded("its socket is closed") from exc

    def resize(self, cols: int, rows: int) -> None:
        """A plain byte stream has no place for it."""
