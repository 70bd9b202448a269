from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiovmm.console import AttachEnd, Console, attach_socket
from aiovmm.console.backends import SocketBackend
from aiovmm.errors import HostError
from tests.console.device import StubDevice
from tests.console.screen import Screen, eventually, screen_of
from tests.limits import HANGS


@pytest.fixture
async def screen() -> AsyncIterator[Screen]:
    with screen_of() as screen:
        yield screen


async def test_a_terminal_in_another_process(screen: Screen, tmp_path: Path) -> None:
    device, before = StubDevice(), screen.state()
    console = Console(device)
    console.feed(b"boot\r\n")
    async with SocketBackend(console, tmp_path / "console") as backend:
        for keys in (b"first", b"second"):
            task = asyncio.create_task(attach_socket(tmp_path / "console", terminal=screen.terminal))
            await screen.until(b"boot\r\n")
            await screen.type(keys + b"\x03\x10\x11")
            assert await task is AttachEnd.DETACHED
            assert screen.state() == before
            await eventually(lambda want=keys + b"\x03": device.received.endswith(want))  # type: ignore[misc]
            await eventually(lambda: backend.clients == 0)
        task = asyncio.create_task(attach_socket(tmp_path / "console", terminal=screen.terminal))
        await screen.until(b"boot\r\n")
        console.feed(b"Power down")
        console.close()
        assert await task is AttachEnd.GUEST_ENDED
        await screen.until(b"Power down")
        assert screen.state() == before


async def test_detaching_from_one_that_takes_no_input(screen: Screen, tmp_path: Path) -> None:
    async with SocketBackend(Console(StubDevice(room=0)), tmp_path / "console"):
        task = asyncio.create_task(attach_socket(tmp_path / "console", terminal=screen.terminal))
        await eventually(lambda: not screen.terminal_is_cooked())
        typing = asyncio.create_task(screen.type(b"k" * 700_000 + b"\x10\x11"))
        assert await asyncio.wait_for(task, HANGS) is AttachEnd.DETACHED
        await typing


async def test_a_cancelled_session_restores_the_terminal(screen: Screen, tmp_path: Path) -> None:
    before = screen.state()
    async with SocketBackend(Console(StubDevice()), tmp_path / "console") as backend:
        task = asyncio.create_task(attach_socket(tmp_path / "console", terminal=screen.terminal))
        await eventually(lambda: not screen.terminal_is_cooked())
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert screen.state() == before
        await eventually(lambda: backend.clients == 0)


async def test_nobody_there(screen: Screen, tmp_path: Path) -> None:
    before = screen.state()
    with pytest.raises(HostError, match="attach to the console"):
        await attach_socket(tmp_path / "none", terminal=screen.terminal)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "stale"))
    with pytest.raises(HostError, match="is its VM running"):
        await attach_socket(tmp_path / "stale", terminal=screen.terminal)
    assert screen.state() == before
