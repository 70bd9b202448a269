"""Who comes first is served first: of many that begin at once, a few get on with it, and the others wait in order.

Without it a hundred guests that are started together take each step together, and the first of them is ready when the last is; of
those that are stopped together each step of all of them is one turn of the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import AbstractAsyncContextManager
from weakref import WeakKeyDictionary

__all__ = ["admitted"]

AT_ONCE = 3
"""More would not be faster: most of what they do needs the interpreter."""

ENDING = 16
"""Who is taken apart waits for the host's kernel most of the time."""

PATIENCE = 0.05
"""Seconds that one counts. What takes longer waits for something (a file, another process), and others need not wait with it."""


class _Door:
    """Of one event loop, for those who do the same."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        if self._inside < self._most and not self._waiting:
            self._inside += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was let in at the same moment
                self.leave()
            raise

    def leave(self) -> None:
        self._inside -= 1
        while self._waiting and self._inside < self._most:
            place = self._waiting.popleft()
            if not place.done():
                self._inside += 1
                place.set_result(None)


_doors: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[_Door, _Door]] = WeakKeyDictionary()


class _Admission:
    """One's place inside: see admitted. No generator, since each VM has three in its life."""

    def __init__(self, door: _Door, loop: asyncio.AbstractEventLoop) -> None:
        self._door = door
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._door.enter()
        self._timer = self._loop.call_later(PATIENCE, self._leave)

    async def __aexit__(self, *_exc: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._leave()

    def _leave(self) -> None:
        """Once: when it is done, or has counted for long enough."""
        self._timer = None
        self._door.leave()


def admitted(*, to_end: bool = False) -> AbstractAsyncContextManager[None]:
    """Wait for one's turn on this event loop; inside, be one of the `AT_ONCE` that are at work, for `PATIENCE` at most. Those who
    are there `to_end` are `ENDING`, and the others do not wait for them."""
    loop = asyncio.get_running_loop()
    doors = _doors.get(loop)
    if doors is None:
        doors = _doors[loop] = _Door(AT_ONCE), _Door(ENDING)
    return _Admission(doors[to_end], loop)
