"""Time limits that do not count time in which this process was stopped (SIGSTOP, a debugger) or had no processor: what it waits
for stood still as well, as its own guests do, or has answered in vain.

Clocks go on meanwhile, and nobody tells. So a limit is looked at twenty times; a look that comes far too late counts as if it had
come when it was due.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

__all__ = ["Awake", "awake_budget", "awake_timeout", "counted"]

_LOOKS = 20
_SHORTEST, _LONGEST = 0.005, 3600.0  # seconds between two looks
_MISSED = 2  # looks that were due: then the loop did not run


def counted(passed: float, due: float) -> float:
    """How much counts of the `passed` seconds since a look after which the next was due in so many."""
    return passed if passed <= _MISSED * due else due


class Awake:
    """`limit` seconds, of which some have `passed` already."""

    def __init__(self, limit: float, now: float, passed: float = 0.0) -> None:
        self.limit = limit
        self.passed = passed
        self._looked = now
        self._due = 0.0

    def look(self, now: float) -> float | None:
        """Seconds to the next look; None: the limit is reached."""
        self.passed += counted(now - self._looked, self._due)
        self._looked = now
        left = self.limit - self.passed
        self._due = min(max(min(self.limit / _LOOKS, left), _SHORTEST), _LONGEST)
        return self._due if left > 0 else None


@asynccontextmanager
async def awake_timeout(seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
    """asyncio.timeout of such a limit, and likewise."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    async with asyncio.timeout(None) as timeout:
        if seconds is None:
            yield timeout
            return
        waited = Awake(seconds, loop.time())

        def look() -> None:
            nonlocal timer
            pause = waited.look(loop.time())
            if pause is None:
                timeout.reschedule(loop.time())
            else:
                timer = loop.call_later(pause, look)

        look()
        try:
            yield timeout
        finally:
            if timer is not None:
                timer.cancel()


@contextmanager
def awake_budget(seconds: float | None) -> Iterator[Callable[[], float | None]]:
    """So many for several waits and what is between them, on the running loop: how many are left, whenever that is asked. None:
    there is no end to them."""
    if seconds is None:
        yield lambda: None
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    waited = Awake(seconds, loop.time())

    def look() -> None:
        nonlocal timer
        if timer is not None:
            timer.cancel()
        pause = waited.look(loop.time())
        timer = None if pause is None else loop.call_later(pause, look)

    def left() -> float:
        look()
        return max(seconds - waited.passed, 0.0)

    look()
    try:
        yield left
    finally:
        if timer is not None:
            timer.cancel()
