"""A connection that its other end has reset."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.limits import HANGS

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def reset_connection() -> AsyncIterator[Streams]:
    """The streams of one, of which the event loop knows."""
    there: asyncio.Future[Streams] = asyncio.get_running_loop().create_future()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there.set_result((reader, writer))

    async with asyncio.timeout(HANGS), await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        client = socket.create_connection(server.sockets[0].getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reader, writer = await there
        client.close()
        while not writer.is_closing():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        for _ in range(10):  # until uvloop has closed it
            await asyncio.sleep(0)
        yield reader, writer
