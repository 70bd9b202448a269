"""A queue served from the event loop's own callbacks, for devices whose turn never waits.

A kick that wakes a coroutine costs a future, a step of a task and two more rounds of the loop before the chain is looked at, and
one more behind it. Here the callback of the kick is the turn.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Protocol

from aiovmm.runtime.tasks import fail
from aiovmm.runtime.turns import Job

__all__ = ["Next", "Serving", "Turn"]


class Next(enum.Enum):
    """What a turn wants to be followed by."""

    KICK = enum.auto()  # the ring was empty: another one as soon as it is not
    TURN = enum.auto()  # another one, when the loop has had its own
    RETURN = enum.auto()  # none: there is something else to be waited for


Turn = Callable[[], Next]


class Kicked(Protocol):
    """What is needed of the queue."""

    def end_turn(self) -> bool:
        """Ask for a kick. False: there are chains already."""


class Serving:
    """One call of `Queue.serve`. A turn that raises ends it, and so does `fail`."""

    def __init__(self, queue: Kicked, turn: Turn) -> None:
        self._queue = queue
        self._turn = turn
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._again = Job(self.kicked)  # of who serves it

    async def run(self) -> None:
        """Until a turn wants to return. Raises what a turn raises."""
        try:
            self.kicked()
            await self._done
        finally:
            self._again.close()
            if not self._done.cancel() and not self._done.cancelled():
                self._done.exception()  # seen, also if a cancellation came first

    def kicked(self) -> None:
        """The driver has kicked: a turn, unless one is due anyhow."""
        if self._again.due or self._done.done():
            return
        try:
            after = self._turn()
            if after is Next.RETURN:
                self._done.set_result(None)
            elif after is Next.TURN or not self._queue.end_turn():
                self._again.again()
        except Exception as exc:
            self.fail(exc)

    def fail(self, error: Exception) -> None:
        """Let `run` raise this."""
        fail(self._done, error)
