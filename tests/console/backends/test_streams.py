from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from aiovmm.console import AttachEnd, Console
from aiovmm.console.backends import StdioBackend, StreamBackend
from tests.console.device import StubDevice
from tests.console.screen import DEADLINE, eventually
from tests.reset_peer import reset_connection


async def test_a_pair_of_streams() -> None:
    device = StubDevice()
    console = Console(device)
    console.feed(b"boot\n")
    near, far = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=near)
    far_reader, far_writer = await asyncio.open_connection(sock=far)
    async with StreamBackend(console, reader, writer) as backend:
        async with asyncio.timeout(DEADLINE):
            assert await far_reader.readline() == b"boot\n"
            far_writer.write(b"root\r")
            await eventually(lambda: device.received == b"root\r")
            far_writer.close()
            ended = asyncio.create_task(backend.wait())
            while not ended.done():
                console.feed(b"more")
                await asyncio.sleep(0.005)
            assert ended.result() is AttachEnd.TERMINAL_CLOSED
    writer.close()


async def test_a_stream_whose_other_end_has_reset_it_has_ended() -> None:
    console = Console(StubDevice())
    async with reset_connection() as (_, writer), StreamBackend(console, None, writer) as backend:
        console.feed(b"more")
        assert await asyncio.wait_for(backend.wait(), DEADLINE) is AttachEnd.TERMINAL_CLOSED


async def test_output_alone() -> None:
    console = Console()
    near, far = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=near)
    async with StreamBackend(console, None, writer):
        console.feed(b"only output")
    writer.close()
    far.settimeout(DEADLINE)
    with far:
        assert far.recv(100) == b"only output"


async def test_standard_input_and_output_as_pipes() -> None:
    device = StubDevice()
    console = Console(device)
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
    async with StdioBackend(console, in_read, out_write) as backend:
        os.write(in_write, b"poweroff\n")
        os.close(in_write)
        await eventually(lambda: device.received == b"poweroff\n")
        console.feed(b"Power down\n")
        console.close()
        assert await asyncio.wait_for(backend.wait(), DEADLINE) is AttachEnd.GUEST_ENDED
    assert os.read(out_read, 100) == b"Power down\n"
    assert os.get_blocking(in_read)
    assert os.get_blocking(out_write)
    for fd in (in_read, out_read, out_write):
        os.close(fd)


async def test_standard_input_and_output_as_files(tmp_path: Path) -> None:
    device = StubDevice()
    console = Console(device)
    (tmp_path / "in").write_bytes(b"y" * 10_000)
    with (tmp_path / "in").open("rb") as given, (tmp_path / "out").open("wb", buffering=0) as taken:
        taken.write(b"before: ")
        async with StdioBackend(console, given.fileno(), taken.fileno()):
            await eventually(lambda: device.received == b"y" * 10_000)
            console.feed(b"output")
    assert (tmp_path / "out").read_bytes() == b"before: output"


async def test_no_standard_input() -> None:
    console = Console(StubDevice())
    null = os.open(os.devnull, os.O_RDWR)
    async with StdioBackend(console, null, null) as backend:
        console.feed(b"x")
        console.close()
        assert await asyncio.wait_for(backend.wait(), DEADLINE) is AttachEnd.GUEST_ENDED
    os.close(null)


async def test_whoever_reads_our_output_may_go() -> None:
    console = Console(StubDevice())
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
    os.close(out_read)
    async with StdioBackend(console, in_read, out_write) as backend:
        console.feed(b"x")
        assert await asyncio.wait_for(backend.wait(), DEADLINE) is AttachEnd.TERMINAL_CLOSED
    for fd in (in_read, in_write, out_write):
        os.close(fd)
