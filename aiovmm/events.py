"""The event stream of a VM, or of anything else: one sender, any number of subscribers, each with a bounded queue of its own."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from aiovmm.runtime.event import Event
from aiovmm.runtime.home import HomeLoop

__all__ = ["EventStream", "Subscription"]

LIMIT = 1024  # events kept for a subscriber that does not read; the oldest go first


E = TypeVar("E")


class Subscription(AsyncIterator[E]):
    """Iterates over events from the moment it was made; ends when the VM has ended and all were read.

    `lost` counts events that went by unread because more than 1024 waited. One task at a time may iterate.
    """

    def __init__(self, home: HomeLoop) -> None:
        self._home = home
        self._queue: deque[E] = deque(maxlen=LIMIT)
        self._wakeup = Event()
        self._ended = False
        self.lost = 0

    def _put(self, event: E) -> None:
        self.lost += len(self._queue) == LIMIT
        self._queue.append(event)
        self._wakeup.set()

    def _end(self) -> None:
        self._ended = True
        self._wakeup.set()

    def __aiter__(self) -> Subscription[E]:
        return self

    async def __anext__(self) -> E:
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            self._home.check()
            self._wakeup.clear()
            await self._wakeup.wait()
        return self._queue.popleft()


class EventStream(Generic[E]):
    """Fans events out. `history` keeps the last ones, so that a late subscriber can ask for them; so many."""

    def __init__(self, home: HomeLoop | None = None, *, kept: int = LIMIT) -> None:
        self._home = home or HomeLoop("a subscription to events")
        self.history: deque[E] = deque(maxlen=kept)
        self._subscriptions: weakref.WeakSet[Subscription[E]] = (
            weakref.WeakSet()
        )  # one that is dropped costs nothing more
        self._ended = False

    def emit(self, event: E) -> None:
        """Give `event` to every subscriber. Never blocks. Ignored after `end`."""
        if self._ended:
            return
        self.history.append(event)
        for subscription in self._subscriptions:
            subscription._put(event)

    def subscribe(self, *, from_start: bool = False) -> Subscription[E]:
        """A new subscription; with `from_start` it begins with the events that are kept."""
        subscription: Subscription[E] = Subscription(self._home)
        if from_start:
            for event in self.history:
                subscription._put(event)
        if self._ended:
            subscription._end()
        else:
            self._subscriptions.add(subscription)
        return subscription

    def end(self) -> None:
        """No more events: every subscription ends when it has been read."""
        self._ended = True
        for subscription in self._subscriptions:
            subscription._end()
        self._subscriptions.clear()
