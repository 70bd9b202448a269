from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from aiovmm.console import AttachEnd, Console
from aiovmm.console.backends import SocketBackend, base, unix
from aiovmm.errors import ConfigError, HostError
from tests.console.device import StubDevice
from tests.console.screen import DEADLINE, eventually


@asynccontextmanager
async def client_of(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        async with asyncio.timeout(DEADLINE):
            yield reader, writer
    finally:
        writer.transport.abort()


async def test_clients_see_history_and_output_and_type(tmp_path: Path) -> None:
    path, device = tmp_path / "console", StubDevice()
    console = Console(device)
    console.feed(b"boot\n")
    async with (
        SocketBackend(console, path) as backend,
        client_of(path) as (reader, writer),
        client_of(path) as (reader2, writer2),
    ):
        assert await reader.readline() == await reader2.readline() == b"boot\n"
        console.feed(b"login: ")
        assert await reader.readexactly(7) == await reader2.readexactly(7) == b"login: "
        writer.write(b"a")
        await eventually(lambda: device.received == b"a")
        writer2.write(b"b")
        await eventually(lambda: device.received == b"ab")
        assert backend.clients == 2
        writer.close()
        await eventually(lambda: backend.clients == 1)
        console.close()
        assert await reader2.read() == b""
        assert await backend.wait() is AttachEnd.GUEST_ENDED
    assert not path.exists()


async def test_one_client_too_many_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands that left in one moment held the loop for most of a second."""
    monkeypatch.setattr(unix, "_CLIENTS_MAX", 2)
    path, console = tmp_path / "console", Console()
    console.feed(b"boot\n")
    async with SocketBackend(console, path) as backend, client_of(path) as (first, _):
        async with client_of(path) as (second, _), client_of(path) as (third, _):
            assert await first.readline() == await second.readline() == b"boot\n"
            assert (await third.read()).startswith(b"aiovmm: this console has 2 clients already")
            assert backend.clients == 2
        await eventually(lambda: backend.clients == 1)
        async with client_of(path) as (fourth, _):
            assert await fourth.readline() == b"boot\n"


async def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    path = tmp_path / "console"
    async with SocketBackend(Console(), path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_client_that_does_not_read_stalls_nobody(tmp_path: Path) -> None:
    """8 MiB while one client is stalled: the other sees all of it, the stalled one is told what it lost."""
    path, console = tmp_path / "console", Console()
    piece = bytes(range(64, 128)) * 1024
    async with SocketBackend(console, path) as backend, client_of(path) as (fast, _):
        stalled = socket.socket(socket.AF_UNIX)
        stalled.connect(str(path))
        stalled.setblocking(False)
        await eventually(lambda: backend.clients == 2)
        for _ in range(128):
            console.feed(piece)
            assert await fast.readexactly(len(piece)) == piece
        received, loop = b"", asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE):
            while b"bytes of earlier output are not shown" not in received:
                received = received[-200:] + await loop.sock_recv(stalled, 1 << 16)
        stalled.close()


@pytest.mark.parametrize("ends", ["client", "guest"])
async def test_who_has_gone_is_counted_no_more(ends: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A client with much unread, whose connection is reset; and all of them when the guest has ended."""
    path, console = tmp_path / "console", Console()
    async with SocketBackend(console, path) as backend:
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                await eventually(lambda: backend.clients == 1)
                if ends == "guest":
                    console.close()
                    await eventually(lambda: backend.clients == 0)
                    break
                console.feed(bytes(4 << 20))
                await asyncio.sleep(0)
            await eventually(lambda: backend.clients == 0)
        assert backend._share.held == 0
    assert [record.getMessage() for record in caplog.records] == []


async def test_who_has_gone_is_not_kept_by_a_guest_that_takes_no_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one who is there sent away. A script that types to a guest that hangs would take all descriptors in time."""
    monkeypatch.setattr(base, "LINGER", 0.01)
    path, device = tmp_path / "console", StubDevice(room=0)
    console = Console(device)
    console.write(bytes(64 << 10))
    async with SocketBackend(console, path) as backend, client_of(path) as (_, stays):
        stays.write(b"stays")
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(b"goes")
                await eventually(lambda: backend.clients == 2)
            await eventually(lambda: backend.clients == 1)
        assert backend._share.held == 1
        device.make_room(1 << 20)
        await eventually(lambda: device.received.endswith(b"stays"))
    assert device.received == bytes(64 << 10) + b"stays"


async def test_input_of_any_size_waits_for_the_guest(tmp_path: Path) -> None:
    path, device = tmp_path / "console", StubDevice(room=0)
    console = Console(device)
    data = os.urandom(2 << 20)
    async with SocketBackend(console, path), client_of(path) as (_, writer):
        writer.write(data)
        while len(device.received) < len(data):
            await asyncio.sleep(0)
            device.make_room(10_000)
            assert console.input_waiting <= 64 << 10
    assert device.received == data


async def test_clients_that_type_without_end_leave_the_loop_to_others(tmp_path: Path) -> None:
    """However much has come of each: a piece in its turn, where it was 64 of them of each client at once."""
    clients, data = 20, bytes(128 << 10)
    turn, pieces = 0, Counter[int]()

    class Device(StubDevice):
        def receive(self, data: bytes) -> int:
            pieces[turn] += 1
            return super().receive(data)

    device = Device()
    async with SocketBackend(Console(device), tmp_path / "console"), AsyncExitStack() as stack:
        for _ in range(clients):
            _, writer = await stack.enter_async_context(client_of(tmp_path / "console"))
            writer.write(data)
        while len(device.received) < clients * len(data):
            await asyncio.sleep(0)
            turn += 1
    assert max(pieces.values()) <= 2 * clients


async def test_a_client_that_sends_no_more_still_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiovmm.console.backends.unix._HALF_CLOSED_POLL", 0.02)
    path, device = tmp_path / "console", StubDevice()
    console = Console(device)
    async with SocketBackend(console, path) as backend:
        async with client_of(path) as (reader, writer):
            writer.write(b"poweroff\n")
            writer.write_eof()
            await eventually(lambda: device.received == b"poweroff\n")
            console.feed(b"Power down\n")
            assert await reader.readline() == b"Power down\n"
        await eventually(lambda: backend.clients == 0)


async def test_a_socket_that_nobody_listens_at_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "console"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with SocketBackend(Console(), path), client_of(path):
        pass


async def test_a_socket_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    path, console = tmp_path / "console", Console()
    console.feed(b"first")
    async with SocketBackend(console, path):
        with pytest.raises(HostError, match="listens"):
            await SocketBackend(Console(), path).__aenter__()
        async with client_of(path) as (reader, _):
            assert await reader.readexactly(5) == b"first"


async def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        await SocketBackend(Console(), path).__aenter__()
    assert path.read_text() == "precious"


async def test_paths_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="107"):
        await SocketBackend(Console(), tmp_path / ("x" * 200)).__aenter__()
    with pytest.raises(HostError):
        await SocketBackend(Console(), tmp_path / "none" / "console").__aenter__()


async def test_leaving_disconnects_everybody(tmp_path: Path) -> None:
    path, console = tmp_path / "console", Console()
    async with SocketBackend(console, path):
        reader, writer = await asyncio.open_unix_connection(path)
        console.feed(b"last words")
    async with asyncio.timeout(DEADLINE):
        assert b"last words".startswith(await reader.read())
    writer.transport.abort()
    assert not path.exists()


def stand_still() -> None:
    """Neither side runs, as on a machine that has no processor for this process."""
    time.sleep(0.3)


@pytest.mark.parametrize("pause", [lambda: None, stand_still], ids=["slow", "without a processor"])
async def test_a_slow_client_gets_all_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: Callable[[], None]
) -> None:
    """It takes longer than the others are waited for, but it takes some all the time."""
    monkeypatch.setattr("aiovmm.console.backends.base.LINGER", 0.2)
    console, path = Console(StubDevice()), tmp_path / "console"
    text = bytes(i % 251 for i in range(1_000_000))
    async with SocketBackend(console, path) as backend:
        reader, writer = await asyncio.open_unix_connection(path, limit=4096)
        await eventually(lambda: backend.clients == 1)
        console.feed(text)
        console.close()
        closing = asyncio.create_task(backend.aclose())
        shown, pauses = b"", 4
        while data := await reader.read(32768):
            shown += data
            await asyncio.sleep(0.02)
            if pauses:
                pauses -= 1
                pause()
        assert shown == text
        await closing
        writer.close()
