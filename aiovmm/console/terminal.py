"""A real terminal joined to a guest: raw mode, window size, detach keys, and everything back as it was afterwards."""

from __future__ import annotations

import asyncio
import atexit
import enum
import errno
import os
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from aiovmm.console.fds import OwnedFd
from aiovmm.console.keys import DEFAULT_DETACH, DetachKeys
from aiovmm.console.race import first
from aiovmm.console.screen import ScreenModes
from aiovmm.errors import ConsoleEnded, UsageError

if TYPE_CHECKING:
    from aiovmm.console.stream import Console

__all__ = ["AttachEnd", "FarSide", "Terminal", "attach_console", "run_session"]

_TYPE_AHEAD = 1 << 20  # bytes typed (or pasted) that wait for a guest which does not read; more is refused with a bell
_HOLD = 1.0  # seconds after which a first detach key alone goes to the guest
_LINGER = 0.5  # seconds for the guest to take what was typed before the end
_SIZE_POLL = 0.5  # seconds between looks at the window's size


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

    def resize(self, cols: int, rows: int) -> None: ...


class Terminal:
    """The terminal behind two descriptors, which stay the caller's: they are not closed.

    A new size is noticed within half a second, or at once if the program calls `resized` (from its SIGWINCH handler: a
    library installs none).
    """

    def __init__(self, input_fd: int = 0, output_fd: int = 1) -> None:
        self.input_fd = input_fd
        self.output_fd = output_fd
        self._resized = asyncio.Event()

    def resized(self) -> None:
        """The terminal's size may have changed: look at once. To be called on the loop."""
        self._resized.set()

    async def wait_resized(self) -> None:
        """Until `resized` is called, or half a second has passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SIZE_POLL):
                await self._resized.wait()
        self._resized.clear()

    def is_terminal(self) -> bool:
        return os.isatty(self.input_fd) and os.isatty(self.output_fd)

    def size(self) -> tuple[int, int] | None:
        """(columns, rows), or None if the terminal does not know."""
        try:
            size = os.get_terminal_size(self.output_fd)
        except OSError:
            return None
        return (size.columns, size.lines) if size.columns and size.lines else None

    @contextmanager
    def raw(self) -> Iterator[tuple[OwnedFd, OwnedFd]]:
        """Raw mode: every key is a byte for the guest. Gives descriptors to read and write; all is put back at the end.

        Also at the interpreter's exit, should nobody get to end it.
        """
        if not self.is_terminal():
            raise UsageError("standard input and output are not a terminal; use a socket, a pty or a file instead")
        stack = ExitStack()
        atexit.register(stack.close)
        try:
            with stack:
                saved = termios.tcgetattr(self.input_fd)
                keys = OwnedFd.reopen(self.input_fd, os.O_RDONLY)
                stack.callback(keys.close)
                screen = OwnedFd.reopen(self.output_fd, os.O_WRONLY)
                stack.callback(screen.close)
                stack.callback(_set_attributes, self.input_fd, saved)
                _set_attributes(self.input_fd, _raw_attributes(saved))
                yield keys, screen
        finally:
            atexit.unregister(stack.close)


async def attach_console(
    console: Console, terminal: Terminal, *, detach: bytes = DEFAULT_DETACH, history: bool = True
) -> AttachEnd:
    """Join `terminal` to `console` until the keys `detach` (b"": none) are typed or one side ends; says which.

    `history`: show what the guest printed before. Raises UsageError if it is not a terminal. However it ends, by
    cancellation too, the terminal's modes and its descriptors' flags are as they were. Any number may be attached.
    """
    return await run_session(terminal, _ConsoleSide(console, history), detach)


async def run_session(terminal: Terminal, far: FarSide, detach: bytes) -> AttachEnd:
    """Carry bytes both ways between `terminal` and `far` until one side ends or the detach keys are typed."""
    with terminal.raw() as (keys, screen):
        session = _Session(keys, screen, far, detach)
        try:
            return await first(session.show(), session.read_keys(), session.send_keys(), _follow_size(terminal, far))
        finally:
            session.leave()


class _Session:
    """The three pumps of one attachment. The keys are always read, so detaching works when the guest takes no input."""

    def __init__(self, keys: OwnedFd, screen: OwnedFd, far: FarSide, detach: bytes) -> None:
        self._keys, self._screen, self._far = keys, screen, far
        self._detach = DetachKeys(detach)
        self._modes = ScreenModes()
        self._typed = bytearray()
        self._more = asyncio.Event()
        self._sent = asyncio.Event()

    async def show(self) -> AttachEnd:
        try:
            while data := await self._far.read():
                self._modes.feed(data)
                await self._screen.write(data)
        except OSError as exc:
            return _terminal_closed(exc)
        return AttachEnd.GUEST_ENDED

    async def read_keys(self) -> AttachEnd:
        end = await self._read_keys()
        with suppress(TimeoutError):  # what was typed just before goes to the guest, if it takes it
            async with asyncio.timeout(_LINGER if self._typed else 0):
                await self._sent.wait()
        return end

    async def _read_keys(self) -> AttachEnd:
        while True:
            try:
                async with asyncio.timeout(_HOLD if self._detach.holding else None):
                    data = await self._keys.read()
            except TimeoutError:
                self._type(self._detach.flush())
                continue
            except OSError as exc:
                return _terminal_closed(exc)
            if not data:
                return AttachEnd.TERMINAL_CLOSED
            forward, detached = self._detach.feed(data)
            self._type(forward)
            if detached:
                return AttachEnd.DETACHED

    async def send_keys(self) -> AttachEnd:
        try:
            while await self._more.wait():
                data = bytes(self._typed[:4096])
                await self._far.send(data)
                del self._typed[: len(data)]
                if not self._typed:
                    self._more.clear()
                    self._sent.set()
        except ConsoleEnded:
            pass  # `show` says so, once it has shown the last output
        never: asyncio.Future[AttachEnd] = asyncio.get_running_loop().create_future()
        return await never

    def leave(self) -> None:
        """Undo what the guest did to the screen, as far as the terminal takes it now."""
        try:
            self._screen.write_some(self._modes.undo())
        except OSError as exc:
            _terminal_closed(exc)

    def _type(self, data: bytes) -> None:
        if len(self._typed) + len(data) > _TYPE_AHEAD:
            self._screen.write_some(b"\a")
            return
        self._typed += data
        if self._typed:
            self._more.set()
            self._sent.clear()


class _ConsoleSide:
    """A console of this process as the far side."""

    def __init__(self, console: Console, history: bool) -> None:
        self._view = console.view(history=history)
        self.read = self._view.read
        self.send = console.send
        self.resize = console.resize


async def _follow_size(terminal: Terminal, far: FarSide) -> AttachEnd:
    known = None
    while True:
        size = terminal.size()
        if size is not None and size != known:
            known = size
            far.resize(*size)
        await terminal.wait_resized()


def _raw_attributes(attributes: list[Any]) -> list[Any]:
    """What cfmakeraw(3) does."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = attributes
    iflag &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    oflag &= ~termios.OPOST
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    cc = list(cc)
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, cc]


def _set_attributes(fd: int, attributes: list[Any]) -> None:
    """At once: waiting for output to drain (TCSADRAIN) would hang on a terminal that was stopped."""
    try:
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
    except termios.error as exc:
        if exc.args[0] not in (errno.EIO, errno.EBADF, errno.ENOTTY):  # hung up or closed: nothing is left to restore
            raise


def _terminal_closed(exc: OSError) -> AttachEnd:
    """For a terminal that is gone; any other error is raised on."""
    if exc.errno in (errno.EIO, errno.EPIPE, errno.ENXIO):
        return AttachEnd.TERMINAL_CLOSED
    raise exc
