"""Connecting to a unix socket at which as many wait as may: each who does so says that, whatever his event loop takes it for."""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from aiovmm.agent.link import Link
from aiovmm.agent.place import HybridPlace, UnixPlace
from aiovmm.console.client import attach_socket
from aiovmm.console.terminal import Terminal
from aiovmm.devices.virtio.vhost_user import VhostUserBlk
from aiovmm.errors import HostError
from aiovmm.runtime.stream_socket import connected_to, streams_to
from aiovmm.vhost_user import Timing
from tests.limits import HANGS
from tests.open_files import descriptors


@pytest.fixture
async def full(tmp_path: Path) -> AsyncIterator[tuple[Path, socket.socket]]:
    """The path of a listener that has no room, and the listener."""
    path = tmp_path / "full"
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as waiting:
        listener.bind(str(path))
        listener.listen(0)
        listener.setblocking(False)
        while True:
            one = waiting.enter_context(socket.socket(socket.AF_UNIX))
            one.setblocking(False)
            if one.connect_ex(str(path)) == errno.EAGAIN:
                break
        yield path, listener


async def test_it_is_an_error_and_no_connection(full: tuple[Path, socket.socket]) -> None:
    path, listener = full
    before = descriptors()
    with pytest.raises(BlockingIOError):
        connected_to(path)
    with pytest.raises(BlockingIOError):
        await streams_to(path)
    assert descriptors() <= before
    with listener.accept()[0]:
        connected_to(path).close()


async def test_streams_have_the_socket_to_themselves(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async with await asyncio.start_unix_server(echo, tmp_path / "s"), asyncio.timeout(HANGS):
        for turn in range(4):
            reader, writer = await streams_to(tmp_path / "s")
            writer.write(b"hello\n")
            assert await reader.read() == b"hello\n"
            writer.close()
            await writer.wait_closed()
            del reader, writer
            if not turn:
                before = descriptors()
        assert descriptors() <= before + 1, "the server's of the last"


async def test_a_terminal_that_would_be_attached(full: tuple[Path, socket.socket]) -> None:
    master, slave = pty.openpty()
    with pytest.raises(HostError, match="attach to the console") as caught:
        await attach_socket(full[0], terminal=Terminal(slave, slave))
    assert caught.value.errno == errno.EAGAIN
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("kind", [UnixPlace, HybridPlace])
async def test_an_agent_is_tried_again(kind: type[UnixPlace], full: tuple[Path, socket.socket]) -> None:
    with pytest.raises(ConnectionRefusedError, match="others wait"):
        await kind(full[0]).dial(Link)


async def test_a_back_end_is_waited_for(full: tuple[Path, socket.socket]) -> None:
    device = VhostUserBlk(full[0], timing=Timing(connect=0.2, answer=1, patience=0.3))
    with pytest.raises(HostError, match=r"waited for 0\.2 s") as caught:
        await device.open()
    assert caught.value.errno == errno.EAGAIN
