"""The person's terminal while a command runs on one in the nested host: raw, its size passed on, restored after."""

from __future__ import annotations

import contextlib
import os
import termios
import tty
from collections.abc import Iterator


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """`fd` passes every key on as it is typed; restored however the block ends."""
    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)  # what was typed ahead is kept
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class SizeWatch:
    """Tells changes of a terminal's size; asked once a turn, so it needs no signal handler."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = self._now()

    def _now(self) -> list[int]:
        columns, rows = os.get_terminal_size(self._fd)
        return [rows, columns]

    def changed(self) -> list[int] | None:
        """The new [rows, columns], or None if it is as it was."""
        now = self._now()
        if now == self.size:
            return None
        self.size = now
        return now
