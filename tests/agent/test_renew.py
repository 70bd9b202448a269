"""A guest that goes on where another one stood is given the time and entropy before anything else is asked of its agent."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from aiovmm.agent import Agent
from aiovmm.agent.place import UnixPlace
from aiovmm.agent.wire import Frame, FrameBuffer, Kind, frame
from tests.agent.test_hostile_agent import HELLO
from tests.limits import HANGS


class Guest:
    """The frames that its agent got, by connection. It answers each question but a ping with `number`, or hangs up at the
    `leaves`th."""

    def __init__(self, number: int = 0, leaves: int = 0) -> None:
        self.asked: list[list[Frame]] = []
        self._number = number
        self._leaves = leaves

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked: list[Frame] = []
        self.asked.append(asked)
        frames = FrameBuffer()
        with suppress(ConnectionError, asyncio.CancelledError):
            writer.write(HELLO)
            while data := await reader.read(1 << 16):
                frames.room()[: len(data)] = data
                for got in frames.filled(len(data)):
                    if got.kind == Kind.HELLO:
                        continue
                    asked.append(got)
                    self._leaves -= 1
                    if self._leaves == 0:
                        writer.close()
                        return
                    number = 0 if got.kind == Kind.PING else self._number
                    writer.write(frame(0, Kind.DONE, struct.pack("<I", number)))
        writer.close()


@asynccontextmanager
async def agent_of(guest: Guest, path: Path, *, renews: bool) -> AsyncIterator[Agent]:
    server = await asyncio.start_unix_server(guest.serve, path)
    agent = Agent(UnixPlace(path), patience=20, renews=renews)
    try:
        yield agent
    finally:
        agent.close()
        server.close()


def kinds(asked: list[Frame]) -> list[Kind]:
    return [Kind(frame.kind) for frame in asked]


@pytest.mark.parametrize("number", [0, 1], ids=["done", "not permitted"])
async def test_first_of_all_and_once(tmp_path: Path, number: int) -> None:
    guest = Guest(number)
    async with agent_of(guest, tmp_path / "a", renews=True) as agent:
        await agent.ready()
        await agent.ping()
        (asked,) = guest.asked
        assert kinds(asked) == [Kind.CLOCK, Kind.ENTROPY, Kind.PING]
        seconds, nanoseconds = struct.unpack("<QI", asked[0].payload)
        assert 0 <= time.time() - (seconds + nanoseconds / 1e9) < HANGS
        assert len(set(asked[1].payload)) > 16
        agent._link.close()  # type: ignore[union-attr]
        await agent.ping()
    assert kinds(guest.asked[1]) == [Kind.PING]


async def test_an_agent_that_leaves_meanwhile_is_asked_again(tmp_path: Path) -> None:
    guest = Guest(leaves=2)
    async with agent_of(guest, tmp_path / "a", renews=True) as agent:
        await agent.ping()
    assert kinds(guest.asked[1]) == [Kind.CLOCK, Kind.ENTROPY, Kind.PING]


async def test_one_that_booted_has_its_own(tmp_path: Path) -> None:
    guest = Guest()
    async with agent_of(guest, tmp_path / "a", renews=False) as agent:
        await agent.ping()
    assert kinds(guest.asked[0]) == [Kind.PING]
