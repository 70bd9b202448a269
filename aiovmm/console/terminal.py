"""A real terminal joined to a guest: raw mode, window size, job control, and everything back as it was afterwards."""

from __future__ import annotations

import asyncio
import atexit
import enum
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol

from aiovmm.console.fds import Descriptor, open_end, open_output
from aiovmm.console.modes import ModeSetter, raw, raw_output, same_terminal
from aiovmm.errors import UsageError

__all__ = ["AttachEnd", "FarSide", "Terminal"]

_SIZE_POLL = 0.5  # seconds between looks at the window's size, and at who has the terminal


class AttachEnd(enum.Enum):
    """Why a terminal is no longer attached."""

    DETACHED = "detached"  # by the detach keys
    GUEST_ENDED = "guest ended"
    TERMINAL_CLOSED = "terminal closed"


class FarSide(Protocol):
    """What a terminal is joined to: a console in this process, or a socket to one in another."""

    async def read(self) -> bytes:
        """Output; b"" when there will be no more."""

    async def send(self, data: bytes) -> None:
        """Input, with back-pressure. Raises ConsoleEnded."""

    def resize(self, cols: int, rows: int) -> None:
        """The terminal's size from now on, in characters."""


class Terminal:
    """The terminal behind two descriptors, which stay the caller's: they are not closed. One of the two may be anything else.

    A new size, or a shell that brings this process to the foreground or sends it to the background, is noticed within half a
    second; or at once if the program says so (from its handlers of SIGWINCH and SIGCONT: a library installs none).

    An output that is no terminal and cannot be written ends the session by its error; with `on_output_lost` that hears of the
    error instead, once, and the session goes on without output.

    `filtered`: a terminal is shown what draws on it alone, and neither asked anything nor told to do anything else (guard.py).
    """

    def __init__(
        self,
        input_fd: int = 0,
        output_fd: int = 1,
        *,
        on_output_lost: Callable[[OSError], None] | None = None,
        filtered: bool = False,
    ) -> None:
        self.input_fd = input_fd
        self.output_fd = output_fd
        self.on_output_lost = on_output_lost
        self.filtered = filtered
        self._modes: list[ModeSetter] = []  # while it is raw
        self._changed = asyncio.Event()
        self._usable = asyncio.Event()

    def resized(self) -> None:
        """The terminal's size may have changed: look at once. To be called on the loop."""
        self._changed.set()

    def continued(self) -> None:
        """This process goes on after a stop (SIGCONT), and others may have used the terminal. To be called on the loop."""
        self.look(again=True)
        self._changed.set()

    def suspend(self) -> None:
        """This process is about to stop (SIGTSTP): put the modes back until `continued`."""
        for modes in self._modes:
            modes.give_back()
        self._usable.clear()

    async def wait_changed(self) -> None:
        """Until `resized` or `continued` is called, or half a second has passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SIZE_POLL):
                await self._changed.wait()
        self._changed.clear()

    async def wait_usable(self) -> None:
        """Until this process may read keys: it is in the foreground, or the input is no terminal."""
        await self._usable.wait()

    def look(self, *, again: bool = False) -> None:
        """See whether the terminal is ours to use now, and set its modes if it has just become so, or `again`."""
        ours = [modes.look(again=again) for modes in self._modes]
        if all(ours):
            self._usable.set()
        else:
            self._usable.clear()

    @property
    def input_is_terminal(self) -> bool:
        """Whether keys come from one."""
        return os.isatty(self.input_fd)

    @property
    def output_is_terminal(self) -> bool:
        """Whether output goes to one."""
        return os.isatty(self.output_fd)

    def is_terminal(self) -> bool:
        """Whether either side is one."""
        return self.input_is_terminal or self.output_is_terminal

    def size(self) -> tuple[int, int] | None:
        """(columns, rows), or None if the terminal does not know."""
        try:
            size = os.get_terminal_size(self.output_fd if self.output_is_terminal else self.input_fd)
        except OSError:
            return None
        return (size.columns, size.lines) if size.columns and size.lines else None

    @contextmanager
    def raw(self) -> Iterator[tuple[Descriptor, Descriptor]]:
        """Raw mode: every key is a byte for the guest. Gives descriptors to read and write; all is put back at the end.

        Also at the interpreter's exit, should nobody get to end it. In the background it waits for the foreground.
        """
        if not self.is_terminal():
            raise UsageError("standard input and output are not a terminal; use a socket, a pty or a file instead")
        stack = ExitStack()
        atexit.register(stack.close)
        try:
            with stack:
                keys = open_end(self.input_fd, os.O_RDONLY)
                stack.callback(keys.close)
                screen = open_output(self.output_fd, None if self.output_is_terminal else self.on_output_lost)
                stack.callback(screen.close)
                stack.callback(self._modes.clear)
                stack.callback(self.suspend)
                self._modes += self._setters()
                self.look()
                yield keys, screen
        finally:
            atexit.unregister(stack.close)

    def drop_input(self) -> None:
        """What the terminal has sent by itself, for the guest asked it, is not for who has the terminal next."""
        for modes in self._modes:
            modes.flush = True

    def _setters(self) -> list[ModeSetter]:
        setters = []
        if self.input_is_terminal:
            setters.append(ModeSetter(self.input_fd, raw, flush=True))
        if self.output_is_terminal and not (setters and same_terminal(self.input_fd, self.output_fd)):
            setters.append(ModeSetter(self.output_fd, raw_output, flush=False))
        return setters
