"""Giving back what an entered VM has: the guest is ended first, then its watch, the places of its consoles, and the machine."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from aiovmm.errors import HostError, StateError
from aiovmm.lifecycle import ExitReason, ExitStatus
from aiovmm.machine.ending import Ending
from aiovmm.runtime.admission import admitted

if TYPE_CHECKING:
    from aiovmm.console.places import Places
    from aiovmm.machine.limits import Limits

__all__ = ["Release"]

_WATCH = 0.25  # seconds after the start until somebody looks after who blocks the loop
PATIENCE = 60.0
"""Seconds for giving back; a server may have to be brought much that was written. What a disk that never answers has under way
goes to the guest's memory some time, so that stays until then, and nobody waits."""
_ABANDONED = 10.0
"""Seconds for what is done after the loop was closed: something there may wait for a task that will never go on."""


class Release:
    """Of one VM. `limits` are its, if it has any. `places` are those that its consoles are joined to, once there are any."""

    def __init__(self, name: str, ending: Ending) -> None:
        self.places: Places | None = None
        self.limits: Limits | None = None
        self._name = name
        self._ending = ending
        self._watch: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._unwatch: Callable[[], None] | None = None  # while it is watched: by what knows us

    def watch_soon(self, loop_closed: Callable[[], None]) -> None:
        """Have the watchdog look after the guest that has begun to run; `loop_closed` is called, in another thread, if it finds
        the loop closed."""
        self._watch = asyncio.get_running_loop().call_later(_WATCH, self._watch_loop, loop_closed)

    async def close(self, status: ExitStatus) -> None:
        """End the guest, if it has not ended, with that status, and take everything apart. Idempotent. Raises HostError where
        that takes too long; it goes on then, and who calls again waits again."""
        from aiovmm.runtime.awake import ends_within  # not at a start

        await self._ending.end(status)
        if (closing := self._closing) is None:
            closing = self._closing = asyncio.ensure_future(self._take_apart())
        if not await ends_within(PATIENCE, closing):
            hint = "a device or a snapshot does not end, as where storage does not answer: memory, files and locks stay till then"
            raise HostError(f"giving back what VM {self._name!r} has", errno.ETIMEDOUT, hint)
        if self._closing is closing:  # and none of those who wait for it as well has said so yet
            self._closing = None
        closing.result()

    async def _take_apart(self) -> None:
        await self._ending.settled()
        for give_up in self._ending.readers:
            give_up()
        self._end_watch()
        try:
            if self.places is not None:
                await self.places.aclose()
        finally:
            async with self._ending.transition, admitted(to_end=True):
                await self._ending.power.aclose()

    async def left_behind(self) -> None:
        """The same for who did not ask for it."""
        await self.close(ExitStatus(ExitReason.KILLED, "its program left it behind"))

    async def abandon(self) -> None:
        """What of it can be done on another loop, once the VM's own was closed."""
        async with asyncio.timeout(_ABANDONED), AsyncExitStack() as stack:  # the last first
            stack.push_async_callback(self._ending.power.aclose)
            if self.places is not None:
                stack.push_async_callback(self.places.aclose)
            stack.callback(self._end_watch)
            if self._ending.power.machine is not None:
                stack.callback(self._ending.power.machine.processors.cut_off)
            with suppress(RuntimeError):  # from each that waits for it on the closed loop, and will for ever
                self._ending.give_up(StateError("its event loop was closed"))

    def _watch_loop(self, loop_closed: Callable[[], None]) -> None:
        from aiovmm.machine.watched import watch_over  # not before the guest runs

        self._unwatch = watch_over(self._name, self._ending, loop_closed)

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self.limits is not None:
            self.limits.close()
        unwatch, self._unwatch = self._unwatch, None
        if unwatch is not None:
            unwatch()
