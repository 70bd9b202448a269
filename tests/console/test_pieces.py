"""What is made of hostile output for a terminal is made piece by piece: the loop is others', too."""

from __future__ import annotations

import asyncio
import os
import pty

import pytest

from aiovmm.console import Console
from aiovmm.console.backends import FileBackend
from aiovmm.console.guard import OutputGuard
from aiovmm.console.pieces import PIECE
from aiovmm.console.replay import QueryFilter
from aiovmm.console.session import Session
from aiovmm.console.terminal import Terminal
from tests.limits import HANGS

OUTPUT = b"\x1b" * (1 << 17)


class Watched:
    """How much was looked at between two turns of the loop."""

    def __init__(self) -> None:
        self.since = self.most = self.all = 0

    def note(self, size: int) -> None:
        self.since += size
        self.all += size
        self.most = max(self.most, self.since)

    async def turns(self) -> None:
        while True:
            self.since = 0
            await asyncio.sleep(0)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    seen = Watched()
    for kind in (OutputGuard, QueryFilter):

        def feed(self: object, output: bytes, feed=kind.feed) -> bytes:  # type: ignore[no-untyped-def]
            seen.note(len(output))
            return feed(self, output)  # type: ignore[no-any-return]

        monkeypatch.setattr(kind, "feed", feed)
    return seen


async def test_of_a_history(watched: Watched) -> None:
    console = Console()
    console.feed(OUTPUT)
    view, turns = console.view(), asyncio.create_task(watched.turns())
    await asyncio.sleep(0)
    while watched.all < len(OUTPUT):
        await view.read()
        await asyncio.sleep(0)
    turns.cancel()
    assert watched.most < 2 * PIECE


async def test_of_what_is_attached(watched: Watched) -> None:
    class Far:
        """Says all of it at once."""

        said = False

        async def read(self) -> bytes:
            self.said = not self.said
            return OUTPUT if self.said else b""

    master, slave = pty.openpty()

    class Screen:
        async def write(self, data: bytes) -> None: ...

    turns = asyncio.create_task(watched.turns())
    await asyncio.sleep(0)
    terminal = Terminal(slave, slave, filtered=True)
    await Session(terminal, Screen(), Screen(), Far(), b"", 1.0).show()  # type: ignore[arg-type]
    turns.cancel()
    os.close(master)
    os.close(slave)
    assert watched.all == len(OUTPUT)
    assert watched.most < 2 * PIECE


async def test_of_a_terminal_in_the_place_of_a_file(watched: Watched) -> None:
    master, slave = pty.openpty()
    console = Console()
    turns = asyncio.create_task(watched.turns())
    async with FileBackend(console, os.ttyname(slave)):
        console.feed(OUTPUT)
        async with asyncio.timeout(HANGS):
            while watched.all < len(OUTPUT):  # noqa: ASYNC110
                await asyncio.sleep(0)
    turns.cancel()
    os.close(master)
    os.close(slave)
    assert watched.most < 2 * PIECE


async def test_a_question_that_is_cut_is_one() -> None:
    """Its answer would be typed to the shell that has the terminal next."""
    master, slave = pty.openpty()

    class Far:
        def __init__(self) -> None:
            self.parts = [b"x" * (PIECE - 2) + b"\x1b[6n", b"\x1b[", b"6n", b""]

        async def read(self) -> bytes:
            return self.parts.pop(0)

    class Screen:
        async def write(self, data: bytes) -> None: ...

    dropped = 0

    class Told(Terminal):
        def drop_input(self) -> None:
            nonlocal dropped
            dropped += 1

    await Session(Told(slave, slave), Screen(), Screen(), Far(), b"", 1.0).show()  # type: ignore[arg-type]
    os.close(master)
    os.close(slave)
    assert dropped >= 2
