"""Joining a terminal to a console, of this process or behind a socket, until one side has enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.console.keys import DEFAULT_DETACH
from aiovmm.console.race import first
from aiovmm.console.session import Session
from aiovmm.console.terminal import AttachEnd, FarSide, Terminal

if TYPE_CHECKING:
    from aiovmm.console.stream import Console

__all__ = ["attach_console", "run_session"]

_HOLD = 1.0  # seconds after which a first detach key alone goes to the guest


async def attach_console(
    console: Console, terminal: Terminal, *, detach: bytes = DEFAULT_DETACH, history: bool = True
) -> AttachEnd:
    """Join `terminal` to `console` until the keys `detach` (b"": none) are typed or one side ends; says which.

    `history`: show what the guest printed before. Raises UsageError if neither side is a terminal. However it ends, by
    cancellation too, the terminal's modes and its descriptors' flags are as they were. Any number may be attached. Where only
    one side is a terminal, input that is none has no detach keys, and its end does not end the session.
    """
    return await run_session(terminal, _ConsoleSide(console, history), detach)


async def run_session(terminal: Terminal, far: FarSide, detach: bytes) -> AttachEnd:
    """Carry bytes both ways between `terminal` and `far` until one side ends or the detach keys are typed."""
    with terminal.raw() as (keys, screen):
        session = Session(terminal, keys, screen, far, detach, _HOLD)
        try:
            end = await first(session.show(), session.read_keys(), session.send_keys(), _follow(terminal, far))
            await session.settle()
        finally:
            session.leave()
    return end


class _ConsoleSide:
    """A console of this process as the far side."""

    def __init__(self, console: Console, history: bool) -> None:
        self._view = console.view(history=history)
        self.read = self._view.read
        self.send = console.send
        self.resize = console.resize


async def _follow(terminal: Terminal, far: FarSide) -> AttachEnd:
    """Keep the guest's idea of the terminal's size, and the terminal's modes, as they should be."""
    known = None
    while True:
        terminal.look()
        size = terminal.size()
        if size is not None and size != known:
            known = size
            far.resize(*size)
        await terminal.wait_changed()
