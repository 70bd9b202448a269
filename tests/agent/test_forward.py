"""Ports of the guest at the host, and back."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from aiovmm import GuestOSError, HostError, StateError, UsageError
from aiovmm.agent import Agent
from aiovmm.agent.forward import _from_channel
from aiovmm.agent.place import UnixPlace
from aiovmm.agent.wire import Frame, FrameBuffer, Kind
from aiovmm.agent.wire import frame as framed
from aiovmm.errors import PeerError
from tests.agent.conftest import Guest
from tests.agent.test_hostile_agent import HELLO
from tests.limits import HANGS
from tests.open_files import descriptors
from tests.reset_peer import reset_connection


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write(b"end")
    writer.close()


@pytest.fixture
async def server() -> AsyncIterator[int]:
    """Of the "guest", which is this machine."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int, before: bytes = b"") -> None:
    """`before` has been written already."""
    data = os.urandom(size)

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    answer, _ = await asyncio.gather(reader.read(), send())
    assert answer == before + data + b"end"
    writer.close()


async def test_a_port_of_the_guest(agent: Agent, guest: Guest, server: int) -> None:
    port = await agent.forwards.to_guest(server, 0, "127.0.0.1")
    assert isinstance(port, int)
    before = guest.descriptors
    await ask(*await asyncio.open_connection("127.0.0.1", port), 3 << 20)
    await asyncio.gather(*[ask(*await asyncio.open_connection("127.0.0.1", port), 1000) for _ in range(50)])
    await guest.idle(before)
    await agent.forwards.end(port)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(UsageError):
        await agent.forwards.end(port)


async def test_unix_sockets(agent: Agent, tmp_path: Path) -> None:
    async with await asyncio.start_unix_server(echo, tmp_path / "guest"):
        place = await agent.forwards.to_guest(os.fspath(tmp_path / "guest"), tmp_path / "host", "")
        assert place == tmp_path / "host"
        await ask(*await asyncio.open_unix_connection(tmp_path / "host"), 100000)
        await agent.forwards.end(tmp_path / "host")
        assert not (tmp_path / "host").exists()


async def test_a_socket_is_found_again_however_its_path_is_spelt(agent: Agent, tmp_path: Path) -> None:
    for given, said in (
        (tmp_path / "host", os.fspath(tmp_path / "host")),
        (os.fspath(tmp_path / "host"), tmp_path / "host"),
        (os.fsencode(tmp_path / "host"), f"{tmp_path}//host"),
    ):
        await agent.forwards.to_guest("/no/such", given, "")  # type: ignore[arg-type]
        await agent.forwards.end(said)
        assert not (tmp_path / "host").exists()


async def test_back(agent: Agent, guest: Guest, server: int, tmp_path: Path) -> None:
    """What connects in the guest gets the host's server."""
    port = await agent.forwards.to_host(0, server, "127.0.0.1")
    assert isinstance(port, int)
    before = guest.descriptors
    await ask(*await asyncio.open_connection("127.0.0.1", port), 3 << 20)
    await asyncio.gather(*[ask(*await asyncio.open_connection("127.0.0.1", port), 1000) for _ in range(50)])
    await guest.idle(before)
    await agent.forwards.to_host(os.fspath(tmp_path / "socket"), server, "127.0.0.1")
    await ask(*await asyncio.open_unix_connection(tmp_path / "socket"), 1000)
    await agent.forwards.end(port, back=True)
    await agent.ping()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def said(reader: asyncio.StreamReader) -> AsyncIterator[Frame]:
    """What an agent is told, until nobody tells it more."""
    frames = FrameBuffer()
    while data := await reader.read(1000):
        frames.room()[: len(data)] = data
        for frame in frames.filled(len(data)):
            yield frame


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
async def test_a_connection_that_crosses_the_end_of_its_port_is_closed(tmp_path: Path) -> None:
    """The agent has taken it, and has heard of the end a moment later."""
    heard: asyncio.Queue[Frame] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        async for frame in said(reader):
            await heard.put(frame)
            if frame.kind == Kind.LISTEN:
                writer.write(framed(frame.channel, Kind.STARTED, struct.pack("<I", 8080)))
            elif frame.kind == Kind.CLOSE and frame.channel < 1 << 31:
                writer.write(framed(frame.channel, Kind.ACCEPTED, struct.pack("<I", 1 << 31 | 5)))
                writer.write(framed(frame.channel, Kind.CLOSED))

    async with await asyncio.start_unix_server(serve, tmp_path / "agent"):
        agent = Agent(UnixPlace(tmp_path / "agent"))
        assert await agent.forwards.to_host(0, 80, "127.0.0.1") == 8080
        await agent.forwards.end(8080, back=True)
        async with asyncio.timeout(HANGS):
            while (frame := await heard.get()).channel != 1 << 31 | 5:
                pass
        assert (frame.kind, frame.payload) == (Kind.CLOSE, bytes(4))
        agent.close()


@asynccontextmanager
async def listens_at(path: Path, port: int) -> AsyncIterator[tuple[Agent, list[Frame]]]:
    """An agent that says so of all that it is asked to listen at, and what it has heard."""
    heard: list[Frame] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        async for frame in said(reader):
            heard.append(frame)
            if frame.kind == Kind.LISTEN:
                writer.write(framed(frame.channel, Kind.STARTED, struct.pack("<I", port)))
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        agent = Agent(UnixPlace(path))
        try:
            yield agent, heard
        finally:
            agent.close()


async def test_what_a_guest_says_is_at_one_port_ends_together(tmp_path: Path) -> None:
    """Else it kept the first after its program has ended it."""
    async with listens_at(tmp_path / "agent", 8080) as (agent, heard):
        assert [await agent.forwards.to_host(0, port, "127.0.0.1") for port in (80, 81)] == [8080, 8080]
        await agent.forwards.end(8080, back=True)
        async with asyncio.timeout(HANGS):
            while len(closed := [frame for frame in heard if frame.kind == Kind.CLOSE]) < 2:  # noqa: ASYNC110 - its own task
                await asyncio.sleep(0)
        assert sorted(frame.channel for frame in closed) == [0, 1]


@pytest.mark.parametrize("said", [0, 99, 70000, 1 << 31])
async def test_a_port_that_was_named_is_that_whatever_a_guest_says(said: int, tmp_path: Path) -> None:
    async with listens_at(tmp_path / "agent", said) as (agent, heard):
        assert await agent.forwards.to_host(8080, 80, "127.0.0.1") == 8080
        await agent.forwards.end(8080, back=True)
        if said != 99:
            with pytest.raises(PeerError, match="which is none"):
                await agent.forwards.to_host(0, 80, "127.0.0.1")
            async with asyncio.timeout(HANGS):
                while [frame.kind for frame in heard[1:]] != [Kind.LISTEN, Kind.CLOSE] * 2:  # noqa: ASYNC110 - its own task
                    await asyncio.sleep(0)


async def test_a_port_of_two_addresses_is_two(agent: Agent) -> None:
    port = await agent.forwards.to_guest(1, 0, "127.0.0.1")
    assert isinstance(port, int)
    assert await agent.forwards.to_guest(1, port, "127.0.0.2") == port
    await agent.forwards.end(port)
    for address in ("127.0.0.1", "127.0.0.2"):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address, port)


async def test_who_listens_at_the_loopback_of_ipv6_alone(agent: Agent, guest: Guest) -> None:
    """As servers do that ask for "localhost"."""
    async with await asyncio.start_server(echo, "::1", 0) as server:
        port = await agent.forwards.to_guest(server.sockets[0].getsockname()[1], 0, "127.0.0.1")
        before = guest.descriptors
        await ask(*await asyncio.open_connection("127.0.0.1", port), 100000)  # type: ignore[arg-type]
        await guest.idle(before)


async def test_either_side_ends_its_sending_and_goes_on_reading(agent: Agent, guest: Guest, tmp_path: Path) -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def ends_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"said")
        writer.write_eof()
        heard.set_result(await reader.read())
        writer.close()

    async with await asyncio.start_server(ends_first, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        there = await agent.forwards.to_guest(port, 0, "127.0.0.1")
        back = await agent.forwards.to_host(0, port, "127.0.0.1")
        before = guest.descriptors
        for place in (there, back):
            heard = asyncio.get_running_loop().create_future()
            reader, writer = await asyncio.open_connection("127.0.0.1", place)  # type: ignore[arg-type]
            assert await reader.read() == b"said"
            writer.write(b"heard all the same")
            writer.write_eof()
            assert await heard == b"heard all the same"
            writer.close()
        await guest.idle(before)


async def test_what_was_said_before_an_end_is_heard(agent: Agent, guest: Guest, tmp_path: Path) -> None:
    """By a client that sends on meanwhile: nobody reads that, which ends one direction and not the other."""
    size = 600 << 10  # more than is under way to who does not read, less than all buffers together
    left = asyncio.Event()

    async def says_and_leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(size))
        writer.close()
        await writer.wait_closed()
        left.set()

    async with await asyncio.start_unix_server(says_and_leaves, tmp_path / "guest"):
        await agent.forwards.to_guest(os.fspath(tmp_path / "guest"), tmp_path / "host", "")
        before = guest.descriptors
        reader, writer = await asyncio.open_unix_connection(tmp_path / "host", limit=1024)
        await asyncio.wait_for(left.wait(), HANGS)
        heard = 0
        while heard < size:
            writer.write(b"x")
            part = await reader.read(1000)
            assert part, f"{heard} bytes of {size}"
            heard += len(part)
        writer.close()
        await guest.idle(before)


async def test_nothing_listens_for_an_agent_that_is_gone(guest: Guest, server: int, tmp_path: Path) -> None:
    """Nor for one that goes while its listener is made."""
    path = tmp_path / "socket"
    for turns in range(12):
        agent = Agent(UnixPlace(guest.path))
        asking = asyncio.create_task(agent.forwards.to_guest(server, path, ""))
        for _ in range(turns):
            await asyncio.sleep(0)
        agent.close()
        with suppress(StateError):
            await asking
        async with asyncio.timeout(HANGS):
            while path.exists():  # noqa: ASYNC110 - a thread removes it
                await asyncio.sleep(0.01)
    with pytest.raises(StateError, match="not there any more"):
        await agent.forwards.to_guest(server, path, "")


async def test_nobody_there(agent: Agent, server: int) -> None:
    port = await agent.forwards.to_guest(1, 0, "127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)  # type: ignore[arg-type]
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()
    back = await agent.forwards.to_host(0, 1, "127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", back)  # type: ignore[arg-type]
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()


async def test_what_cannot_be(agent: Agent, server: int, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=f"127.0.0.1:{server}"):
        await agent.forwards.to_guest(80, server, "127.0.0.1")
    with pytest.raises(GuestOSError, match="in use"):
        await agent.forwards.to_host(server, 80, "127.0.0.1")
    with pytest.raises(UsageError):
        await agent.forwards.to_guest(70000, 0, "127.0.0.1")
    with pytest.raises(UsageError):
        await agent.forwards.to_guest("x" * 200, 0, "127.0.0.1")
    with pytest.raises(UsageError):
        await agent.forwards.to_guest(80, 70000, "127.0.0.1")
    with pytest.raises(UsageError):
        await agent.forwards.to_host(0, 70000, "127.0.0.1")


async def test_one_that_is_given_up_on_the_way_listens_nowhere(agent: Agent, server: int, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    await agent.forwards.to_guest(server, 0, "127.0.0.1")  # what is made only once there is
    for place in (path, 0):
        for turns in range(1, 200):
            before = descriptors()
            task = asyncio.create_task(agent.forwards.to_guest(server, place, "127.0.0.1"))
            for _ in range(turns):
                await asyncio.sleep(0)
            if not task.cancel():
                await agent.forwards.end(task.result())
                break
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0)
            assert descriptors() <= before
            assert not path.exists()


async def test_they_end_with_the_agent(
    agent: Agent, server: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = await agent.forwards.to_guest(server, 0, "127.0.0.1")
    await agent.forwards.to_guest(server, tmp_path / "socket", "")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)  # type: ignore[arg-type]
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    agent.close()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.close()
    async with asyncio.timeout(HANGS):
        while (tmp_path / "socket").exists():  # noqa: ASYNC110 - a thread removes it
            await asyncio.sleep(0.01)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == []


async def test_a_host_by_its_name(agent: Agent, server: int) -> None:
    """Neither way asks for it in the event loop's executor, which is the embedder's."""

    class Nobodys(ThreadPoolExecutor):
        def submit(self, *args: object, **more: object) -> Future[Any]:
            raise AssertionError("the embedder's executor was used")

    asyncio.get_running_loop().set_default_executor(Nobodys())
    port = await agent.forwards.to_guest(server, 0, "localhost")
    assert isinstance(port, int)
    try:
        streams = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:  # that name has its IPv6 address first here
        streams = await asyncio.open_connection("::1", port)
    await ask(*streams, 1000)
    back = await agent.forwards.to_host(0, server, "localhost")
    assert isinstance(back, int)
    await ask(*await asyncio.open_connection("127.0.0.1", back), 1000)
    for name in ("nobody.invalid", "not..a.name", "x" * 80):
        with pytest.raises(UsageError, match=f"'{name}' is no address of this host's"):
            await agent.forwards.to_guest(server, 0, name)


@pytest.mark.parametrize("said", [b"x", b""])
async def test_a_client_that_has_reset_its_connection_is_gone_whatever_the_guest_says_then(said: bytes) -> None:
    out = asyncio.StreamReader()
    out.feed_data(said)
    out.feed_eof()
    async with reset_connection() as (_, writer):
        with pytest.raises(ConnectionError):
            await _from_channel(out, writer)
