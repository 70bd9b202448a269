"""Streams of a guest's that keep the loop from nobody, however small the pieces in which they are taken."""

from __future__ import annotations

import asyncio
import socket

__all__ = ["SharingReader", "open_streams"]

_AT_ONCE = 32  # pieces, until others have their turn


class SharingReader(asyncio.StreamReader):
    """asyncio's reader gives what it has already without a turn for anybody else: a program that takes lines of a guest that has
    sent 128 KiB of them, all empty, would have the loop until the last."""

    _taken = 0

    async def read(self, n: int = -1) -> bytes:
        """See asyncio.StreamReader, as for the others."""
        await self._share()
        return await super().read(n)

    async def readexactly(self, n: int) -> bytes:
        """See asyncio.StreamReader."""
        await self._share()
        return await super().readexactly(n)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:  # type: ignore[override] # tuples since 3.13, which go on
        """See asyncio.StreamReader, whose `readline` is made of this."""
        await self._share()
        return await super().readuntil(separator)

    async def _share(self) -> None:
        self._taken += 1
        if self._taken % _AT_ONCE == 0:
            await asyncio.sleep(0)


async def open_streams(sock: socket.socket) -> tuple[SharingReader, asyncio.StreamWriter]:
    """asyncio.open_connection(sock=) with such a reader. Raises OSError."""
    loop = asyncio.get_running_loop()
    reader = SharingReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
