"""asyncio.Event, for those of which a guest has a dozen and waits for few: the library's takes 700 bytes before anybody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

__all__ = ["Event"]


class Event:
    """Set or not. Of the loop whose tasks wait for it."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: Sequence[asyncio.Future[None]] = ()

    def is_set(self) -> bool:
        """Whether nobody has to wait."""
        return self._set

    def set(self) -> None:
        """Wake all who wait; none will before `clear`."""
        self._set = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """Who waits from now on waits for the next `set`. Those that were woken go on."""
        self._set = False

    async def wait(self) -> None:
        """Until it is set, be it for a moment."""
        if self._set:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters = (*self._waiters, waiter)
        try:
            await waiter
        finally:
            self._waiters = tuple(other for other in self._waiters if other is not waiter)
