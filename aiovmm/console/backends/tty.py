"""The program's own terminal as a back end."""

from __future__ import annotations

import asyncio

from aiovmm.console.backends.base import ConsoleBackend
from aiovmm.console.keys import DEFAULT_DETACH
from aiovmm.console.race import first
from aiovmm.console.stream import Console
from aiovmm.console.terminal import AttachEnd, Terminal

__all__ = ["TtyBackend"]


class TtyBackend(ConsoleBackend):
    """`Console.attach` while the back end is entered; `wait` tells how it ended, DETACHED by the keys among others."""

    def __init__(self, console: Console, terminal: Terminal | None = None, *, detach: bytes = DEFAULT_DETACH) -> None:
        super().__init__(console)
        self._terminal = terminal or Terminal()
        self._detach = detach
        self._finished = asyncio.Event()

    @property
    def place(self) -> str:
        """In words: it has no path."""
        return "the terminal"

    async def _run(self) -> AttachEnd:
        return await first(self._console.attach(self._terminal, detach=self._detach), self._left())

    async def _left(self) -> AttachEnd:
        await self._finished.wait()
        return AttachEnd.DETACHED

    def _finish(self) -> None:
        if not self._console.closed:  # a guest that is gone: its last words go out and end it
            self._finished.set()
