"""The event loop that an object belongs to. From another one, what waits would never be woken: so it is refused, by name."""

from __future__ import annotations

import asyncio
import threading

from aiovmm.errors import StateError

__all__ = ["HomeLoop", "Use"]


class HomeLoop:
    """`what` names the object in errors. It settles on the first loop that it is checked on."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def check(self) -> asyncio.AbstractEventLoop:
        """The running loop, if it is the one that the object belongs to. Raises StateError."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            raise StateError(f"{self._what} is used where no event loop runs; {self._remedy()}") from None
        if self._loop is None:
            self._loop, self._thread = running, threading.get_ident()
        elif running is not self._loop:
            raise StateError(f"{self._what} belongs to another event loop; {self._remedy()}")
        return running

    def check_thread(self) -> None:
        """For what does not wait, and may be called before the loop runs. Raises StateError in another thread than the loop's."""
        if self._loop is not None and threading.get_ident() != self._thread:
            raise StateError(f"{self._what} belongs to another thread's event loop; {self._remedy()}")

    def _remedy(self) -> str:
        if self._loop is not None and self._loop.is_closed():
            return "that one is closed: make a new VM in this one"
        return "from another thread: loop.call_soon_threadsafe, or asyncio.run_coroutine_threadsafe(..., loop).result()"


class Use:
    """Whether a console can be used, and from where. `absent` says why there is no such console in the guest; "" if there is."""

    def __init__(self, home: HomeLoop, absent: str = "") -> None:
        self._home = home
        self._absent = absent

    def appear(self) -> str:
        """The guest has one from now on. Why there was none until now."""
        absent, self._absent = self._absent, ""
        return absent

    def vanish(self, absent: str) -> None:
        """It came to nothing: all is as before `appear`, which gave that."""
        self._absent = absent

    def check(self) -> None:
        """Raises StateError in a thread that the console does not belong to, or if there is no such console."""
        self._home.check_thread()
        if self._absent:
            raise StateError(self._absent)

    def check_waiting(self) -> None:
        """The same for what waits: on the console's own event loop only."""
        self._home.check()
        if self._absent:
            raise StateError(self._absent)
