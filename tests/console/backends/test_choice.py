from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from aiovmm.config import ConsoleConfig, ConsoleMode
from aiovmm.console import AttachEnd, Console, Terminal, open_backend
from aiovmm.console.backends import FileBackend, NullBackend, PtyBackend, SocketBackend, StdioBackend, TtyBackend
from aiovmm.errors import UsageError
from tests.console.device import StubDevice
from tests.console.screen import DEADLINE, eventually, screen_of


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (ConsoleConfig(ConsoleMode.NULL), NullBackend),
        (ConsoleConfig(ConsoleMode.PTY), PtyBackend),
        (ConsoleConfig(ConsoleMode.SOCKET, Path("console")), SocketBackend),
        (ConsoleConfig(ConsoleMode.FILE, Path("console")), FileBackend),
    ],
)
async def test_each_mode_has_its_back_end(
    config: ConsoleConfig, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    console = Console(StubDevice())
    async with open_backend(config, console) as backend:
        assert isinstance(backend, kind)
        assert backend.place
        waiting = asyncio.create_task(backend.wait())
        console.feed(b"x")
        console.close()
        assert await asyncio.wait_for(waiting, DEADLINE) is AttachEnd.GUEST_ENDED


async def test_off_has_none() -> None:
    with pytest.raises(UsageError):
        open_backend(ConsoleConfig(ConsoleMode.OFF), Console())


async def test_the_terminal_as_a_back_end() -> None:
    console = Console(StubDevice())
    with screen_of() as screen:
        before = screen.state()
        async with open_backend(ConsoleConfig(ConsoleMode.TTY), console, terminal=screen.terminal) as backend:
            assert isinstance(backend, TtyBackend)
            console.feed(b"login: ")
            await screen.until(b"login: ")
            await screen.type(b"\x10\x11")
            assert await asyncio.wait_for(backend.wait(), DEADLINE) is AttachEnd.DETACHED
        assert screen.state() == before
        async with open_backend(ConsoleConfig(ConsoleMode.TTY), console, terminal=screen.terminal):
            await eventually(lambda: screen.state() != before)
        assert screen.state() == before


async def test_a_terminal_that_is_none_carries_plain_bytes() -> None:
    near, far = os.pipe()
    try:
        terminal = Terminal(near, far)
        config = ConsoleConfig(ConsoleMode.TTY)
        assert isinstance(open_backend(config, Console(StubDevice()), terminal=terminal), StdioBackend)
    finally:
        os.close(near)
        os.close(far)


async def test_leaving_in_a_hurry_leaves_nothing_behind(tmp_path: Path) -> None:
    configs = [
        ConsoleConfig(ConsoleMode.PTY),
        ConsoleConfig(ConsoleMode.SOCKET, tmp_path / "s"),
        ConsoleConfig(ConsoleMode.FILE, tmp_path / "f"),
    ]
    counts = []
    for _ in range(3):  # the first time, the loop opens a descriptor of its own that it keeps
        for config in configs:
            async with open_backend(config, Console(StubDevice())):
                pass
            assert len(asyncio.all_tasks()) == 1
        await asyncio.sleep(0)
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[1] == counts[2]
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("mode", [ConsoleMode.PTY, ConsoleMode.SOCKET, ConsoleMode.FILE])
async def test_cancelling_the_entry_at_any_await_leaves_nothing_behind(mode: ConsoleMode, tmp_path: Path) -> None:
    config = ConsoleConfig(mode, None if mode is ConsoleMode.PTY else tmp_path / "place")
    for steps in range(6):
        backend = open_backend(config, Console(StubDevice()))
        entry = asyncio.create_task(backend.__aenter__())
        for _ in range(steps):
            await asyncio.sleep(0)
        entry.cancel()
        await asyncio.wait([entry])
        await backend.aclose()
        assert len(asyncio.all_tasks()) == 1
        assert not (tmp_path / "place").is_socket()
