"""A console joined to a pair of asyncio streams."""

from __future__ import annotations

import asyncio

from aiovmm.console.backends.duplex import CHUNK, DuplexBackend
from aiovmm.console.stream import Console
from aiovmm.runtime.stream_socket import require_connected

__all__ = ["StreamBackend"]


class StreamBackend(DuplexBackend):
    """Output to `writer`, input from `reader`; either may be None. They stay the caller's: they are not closed."""

    def __init__(
        self, console: Console, reader: asyncio.StreamReader | None, writer: asyncio.StreamWriter | None
    ) -> None:
        super().__init__(console)
        self._reader = reader
        self._writer = writer

    @property
    def place(self) -> str:
        """In words: it has no path."""
        return "a pair of streams"

    async def _read(self) -> bytes:
        return await self._reader.read(CHUNK) if self._reader is not None else b""

    async def _write(self, data: bytes) -> None:
        if self._writer is not None:
            require_connected(self._writer)
            self._writer.write(data)
            await self._writer.drain()
