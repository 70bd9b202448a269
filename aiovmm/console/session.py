"""What carries bytes between a terminal and a guest while they are attached."""

from __future__ import annotations

import asyncio
import errno
import time
from contextlib import suppress

from aiovmm.console.fds import Descriptor
from aiovmm.console.guard import OutputGuard
from aiovmm.console.keys import DetachKeys
from aiovmm.console.modes import hung_up
from aiovmm.console.pieces import in_pieces
from aiovmm.console.replay import LONGEST_QUERY, asks_terminal
from aiovmm.console.screen import ScreenModes
from aiovmm.console.terminal import AttachEnd, FarSide, Terminal
from aiovmm.errors import ConsoleEnded
from aiovmm.runtime.awake import awake_timeout

__all__ = ["Session"]

_TYPE_AHEAD = 1 << 20  # bytes typed (or pasted) that wait for a guest which does not read; more is refused with a bell
_LINGER = 0.5  # seconds, in which this process can run, for the guest to take what was typed before the end
_ANSWER = 0.2  # seconds that a terminal has for its answer to a guest's query, which then does not go to the shell
_ASKED = 1.0  # seconds after a query in which its answer may still be on its way


class Session:
    """The three pumps of one attachment. The keys are always read, so detaching works when the guest takes no input."""

    def __init__(
        self, terminal: Terminal, keys: Descriptor, screen: Descriptor, far: FarSide, detach: bytes, hold: float
    ) -> None:
        """`hold`: seconds after which a first detach key alone goes to the guest."""
        self._terminal = terminal
        self._keys, self._screen, self._far = keys, screen, far
        self._is_typed = terminal.input_is_terminal
        self._is_shown = terminal.output_is_terminal
        self._hold = hold
        self._detach = DetachKeys(detach if self._is_typed else b"")
        self._modes = ScreenModes()
        self._guard = OutputGuard() if terminal.filtered and self._is_shown else None
        self._asked = float("-inf")
        self._shown = b""  # last: a query may have begun there
        self._typed = bytearray()
        self._more = asyncio.Event()
        self._sent = asyncio.Event()

    async def show(self) -> AttachEnd:
        """Output to the screen, until the far side ends or the terminal is gone."""
        try:
            while data := await self._far.read():
                async for piece in in_pieces(data):
                    await self._screen.write(self._looked_at(piece))
        except OSError as exc:
            return _terminal_closed(exc)
        return AttachEnd.GUEST_ENDED

    def _looked_at(self, data: bytes) -> bytes:
        """What is to be shown of it."""
        if self._guard is not None:
            data = self._guard.feed(data)
        self._modes.feed(data)
        if self._is_shown and asks_terminal(self._shown + data):
            self._asked = time.monotonic()
            self._terminal.drop_input()
        self._shown = data[-LONGEST_QUERY:]
        return data

    async def read_keys(self) -> AttachEnd:
        """Keys from the terminal, until those that detach, or its end."""
        end = await self._read_keys()
        if self._typed:  # just before: it goes to the guest, if that takes it
            with suppress(TimeoutError):
                async with awake_timeout(_LINGER):
                    await self._sent.wait()
        return end

    async def _read_keys(self) -> AttachEnd:
        while True:
            await self._terminal.wait_usable()
            try:
                async with asyncio.timeout(self._hold if self._detach.holding else None):
                    data = await self._keys.read()
            except TimeoutError:
                await self._type(self._detach.flush())
                continue
            except OSError as exc:
                if not self._is_typed:
                    return await _never()
                return _terminal_closed(exc)
            if not data:
                if not self._is_typed:  # the end of a file or a pipe is not the end of the session
                    return await _never()
                if hung_up(self._terminal.input_fd):
                    return AttachEnd.TERMINAL_CLOSED
                self._terminal.look()  # if we read from the background: wait for our turn
                continue
            forward, detached = self._detach.feed(data)
            await self._type(forward)
            if detached:
                return AttachEnd.DETACHED

    async def send_keys(self) -> AttachEnd:
        """What was typed to the far side, as it takes it."""
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
        return await _never()

    async def settle(self) -> None:
        """Give the terminal time to answer what the guest has asked it last; leaving drops the answer."""
        if self._is_typed and time.monotonic() - self._asked < _ASKED:
            with suppress(TimeoutError, OSError):
                async with awake_timeout(_ANSWER):
                    while await self._keys.read():
                        pass

    def leave(self) -> None:
        """Undo what the guest did to the screen, as far as the terminal takes it now."""
        if not self._is_shown:
            return
        try:
            self._screen.write_some(self._modes.undo())
        except OSError as exc:
            _terminal_closed(exc)

    async def _type(self, data: bytes) -> None:
        if not self._is_typed:  # a pipe waits, unlike a person
            while len(self._typed) >= _TYPE_AHEAD // 2:
                self._sent.clear()
                await self._sent.wait()
        elif len(self._typed) + len(data) > _TYPE_AHEAD:
            if self._is_shown:
                self._screen.write_some(b"\a")
            return
        self._typed += data
        if self._typed:
            self._more.set()
            self._sent.clear()


async def _never() -> AttachEnd:
    never: asyncio.Future[AttachEnd] = asyncio.get_running_loop().create_future()
    return await never


def _terminal_closed(exc: OSError) -> AttachEnd:
    """For a terminal that is gone; any other error is raised on."""
    if exc.errno in (errno.EIO, errno.EPIPE, errno.ENXIO, errno.ECONNRESET):
        return AttachEnd.TERMINAL_CLOSED
    raise exc
