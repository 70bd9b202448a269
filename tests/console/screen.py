"""The other side of a terminal: what its user sees and types."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiovmm.console import Terminal
from aiovmm.console.fds import OwnedFd
from tests.limits import HANGS

DEADLINE = HANGS  # a test that needs so long has failed


class Screen:
    """A pseudo-terminal whose slave is `terminal`; the master is the user."""

    def __init__(self) -> None:
        master, self.slave = os.openpty()
        self._master = OwnedFd(master)
        self.terminal = Terminal(self.slave, self.slave)
        self.seen = b""

    async def until(self, text: bytes) -> bytes:
        """What is shown up to and with `text`."""
        async with asyncio.timeout(DEADLINE):
            while text not in self.seen:
                self.seen += await self._master.read()
        index = self.seen.index(text) + len(text)
        shown, self.seen = self.seen[:index], self.seen[index:]
        return shown

    async def type(self, keys: bytes) -> None:
        async with asyncio.timeout(DEADLINE):
            await self._master.write(keys)

    def resize(self, cols: int, rows: int) -> None:
        fcntl.ioctl(self._master.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def state(self) -> tuple[list[object], bool]:
        """The modes, and whether reads of the slave block: what must be as before."""
        return termios.tcgetattr(self.slave), os.get_blocking(self.slave)

    def terminal_is_cooked(self) -> bool:
        """Whether keys are echoed and lines edited, as a shell has it."""
        return bool(termios.tcgetattr(self.slave)[3] & termios.ICANON)

    def hang_up(self) -> None:
        self._master.close()

    def close(self) -> None:
        self._master.close()
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1


@contextmanager
def screen_of() -> Iterator[Screen]:
    screen = Screen()
    try:
        yield screen
    finally:
        screen.close()


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for a condition that nothing announces."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
