"""Bytes between a guest and this process, checked at both ends."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Awaitable, Callable

from aiovmm import VM
from tests.system.guest import limit, shell

Run = Callable[[str], Awaitable[str]]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def transfer(vm: VM, address: str, data: bytes, timeout: float = 60.0) -> None:
    """The guest gets `data` from a server of the host at `address`, then sends it back."""
    await exchange(lambda command: shell(vm, command, timeout=timeout), address, data)


async def exchange(run: Run, address: str, data: bytes) -> None:
    """As `transfer`, with whatever `run` gives commands to: one direction after the other, for busybox's nc does not read while
    it writes."""
    back: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def give(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back.set_result(await reader.readexactly(len(data)))
        writer.close()

    for serve, redirection in ((give, "</dev/null >/tmp/y"), (take, "</tmp/y")):
        async with await asyncio.start_server(serve, address, 0) as server:
            port = server.sockets[0].getsockname()[1]
            await run(f"nc {address} {port} {redirection}")
    assert (await run("sha256sum </tmp/y")).split()[0] == sha256(data)
    assert await asyncio.wait_for(back, limit(10)) == data


async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Counts what comes on a stream, and says how many bytes that were and their CRC-32."""
    total = crc = 0
    while data := await reader.read(1 << 20):
        crc = zlib.crc32(data, crc)
        total += len(data)
    writer.write(b"%d %08x" % (total, crc))
    writer.close()
