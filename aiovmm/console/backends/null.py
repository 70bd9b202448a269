"""A console that goes nowhere but to the program's own streams."""

from __future__ import annotations

from aiovmm.console.backends.base import ConsoleBackend
from aiovmm.console.race import first
from aiovmm.console.stream import Console
from aiovmm.console.terminal import AttachEnd
from aiovmm.runtime.event import Event

__all__ = ["NullBackend"]


class NullBackend(ConsoleBackend):
    """Carries nothing."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._finished = Event()

    @property
    def place(self) -> str:
        """In words: it has no path."""
        return "nowhere"

    async def _run(self) -> AttachEnd:
        await first(self._console.wait_closed(), self._finished.wait())
        return AttachEnd.GUEST_ENDED if self._console.closed else AttachEnd.DETACHED

    def _finish(self) -> None:
        self._finished.set()
