"""Time limits that do not count time in which this process was stopped (SIGSTOP, a debugger) or had no processor: what it waits
for stood still as well, as its own guests do, or has answered in vain.

Clocks go on meanwhile, and nobody tells. So a limit is looked at twenty times; of the time to a look that comes far too late only
that counts in which this thread had a processor, and as much as if it had come when it was due. What holds then: no limit is
reached before its time; one on a loop that is busy all the time is reached a look later at most; and of calls that block the loop
and do nothing there, as waiting for a disk, which cannot be told from a stop, twenty are not counted, and no more (of a limit
of days, one an hour).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

__all__ = ["Awake", "awake_budget", "awake_later", "awake_timeout", "counted", "ends_within"]

_LOOKS = 20
_SHORTEST, _LONGEST = 0.005, 3600.0  # seconds between two looks
_MISSED = 2  # looks that were due: then the loop did not run


def counted(passed: float, due: float, ran: float) -> float:
    """How much counts of the `passed` seconds since a look after which the next was due in so many. This thread `ran` for some
    of them."""
    return passed if passed <= _MISSED * due else min(max(due, ran), passed)


class Awake:
    """`limit` seconds, of which some have `passed` already. `ran` is the processor time of the thread that looks."""

    def __init__(self, limit: float, now: float, ran: float, passed: float = 0.0) -> None:
        self.limit = limit
        self.passed = passed
        self._looked, self._ran = now, ran
        self._due = 0.0

    @classmethod
    def begun(cls, limit: float, passed: float = 0.0) -> Awake:
        """Now, on the running loop."""
        return cls(limit, asyncio.get_running_loop().time(), time.thread_time(), passed)

    def look(self) -> float | None:
        """See `look_at`. Now, on the loop that it has begun on."""
        return self.look_at(asyncio.get_running_loop().time(), time.thread_time())

    def look_at(self, now: float, ran: float) -> float | None:
        """Seconds to the next look; None: the limit is reached."""
        self.passed += counted(now - self._looked, self._due, ran - self._ran)
        self._looked, self._ran = now, ran
        left = self.limit - self.passed
        self._due = min(max(min(self.limit / _LOOKS, left), _SHORTEST), _LONGEST)
        return self._due if left > 0 else None


class _Looks:
    """At `waited`, on the loop that it has begun on, whenever one is due; then `over` is called."""

    def __init__(self, waited: Awake, over: Callable[[], object]) -> None:
        self._waited = waited
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Now, and later again."""
        self.end()
        pause = self._waited.look()
        if pause is None:
            self._over()
        else:
            self._timer = self._loop.call_later(pause, self.look)

    def end(self) -> None:
        """No more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None


def awake_later(seconds: float, call: Callable[[], object]) -> Callable[[], None]:
    """`call_later` of the running loop, of such a limit. What it gives calls that off; idempotent."""
    looks = _Looks(Awake.begun(seconds), call)
    looks.look()
    return looks.end


@asynccontextmanager
async def awake_timeout(seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
    """asyncio.timeout of such a limit, and likewise."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as timeout:
        if seconds is None:
            yield timeout
            return
        looks = _Looks(Awake.begun(seconds), lambda: timeout.reschedule(loop.time()))
        looks.look()
        try:
            yield timeout
        finally:
            looks.end()


@contextmanager
def awake_budget(seconds: float | None) -> Iterator[Callable[[], float | None]]:
    """So many for several waits and what is between them, on the running loop: how many are left, whenever that is asked. None:
    there is no end to them."""
    if seconds is None:
        yield lambda: None
        return
    waited = Awake.begun(seconds)
    looks = _Looks(waited, lambda: None)

    def left() -> float:
        looks.look()
        return max(seconds - waited.passed, 0.0)

    looks.look()
    try:
        yield left
    finally:
        looks.end()


async def ends_within(seconds: float, future: asyncio.Future[Any]) -> bool:
    """Whether it does, however it ends; else it goes on. By a future alone: each VM waits so twice at its end."""
    if future.done():
        return True
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    looks = _Looks(Awake.begun(seconds), wake)
    future.add_done_callback(wake)
    try:
        looks.look()
        await waiter
    finally:
        looks.end()
        future.remove_done_callback(wake)
    return future.done()
