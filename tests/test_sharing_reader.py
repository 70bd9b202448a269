"""A program that takes a guest's stream in small pieces, all of which are there, leaves the loop to others meanwhile."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from aiovmm.runtime.sharing_reader import SharingReader, open_streams

PIECES = 20_000
LINE = b"x\n"
TAKEN: dict[str, Callable[[asyncio.StreamReader], Awaitable[bytes]]] = {
    "lines": lambda reader: reader.readline(),
    "until": lambda reader: reader.readuntil(b"\n"),
    "exactly": lambda reader: reader.readexactly(len(LINE)),
    "some": lambda reader: reader.read(len(LINE)),
}


async def turns_while(work: Awaitable[None]) -> int:
    """How often somebody else is served."""
    turns, over = 0, False

    async def other() -> None:
        nonlocal turns
        while not over:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    await work
    over = True
    await task
    return turns


@pytest.mark.parametrize("how", TAKEN)
async def test_others_have_their_turns(how: str) -> None:
    reader = SharingReader(limit=PIECES * len(LINE))
    reader.feed_data(LINE * PIECES)
    reader.feed_eof()

    async def take() -> None:
        for _ in range(PIECES):
            assert await TAKEN[how](reader) == LINE
        assert await reader.read() == b""

    assert await turns_while(take()) >= PIECES // 64


async def test_so_has_who_iterates_over_a_sockets_lines() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await open_streams(ours)
    theirs.sendall(LINE * PIECES)
    theirs.close()
    lines = 0

    async def take() -> None:
        nonlocal lines
        async for line in reader:
            assert line == LINE
            lines += 1

    assert await turns_while(take()) >= PIECES // 64
    assert lines == PIECES
    writer.close()
    await writer.wait_closed()


async def test_ends_and_too_long_lines_are_as_ever() -> None:
    reader = SharingReader(limit=8)
    reader.feed_data(b"no end of line")
    with pytest.raises(ValueError, match="limit"):
        await reader.readline()
    reader.feed_data(b"12")
    reader.feed_eof()
    with pytest.raises(asyncio.IncompleteReadError):
        await reader.readexactly(3)
