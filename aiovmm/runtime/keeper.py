"""Something that was entered and that nobody leaves: it is noticed, told by a ResourceWarning, and left after all.

    the event loop's tasks are cancelled, as asyncio.run does at its end ──► left on the loop, before it closes
    its object is forgotten while the loop lives                         ──► the same
    its loop is closed: nothing of it can be awaited any more            ──► `abandon`, in a thread: what is left of it is let go

A program that leaves what it enters, be it while all tasks are cancelled, hears nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from aiovmm.errors import printable
from aiovmm.runtime.event import Event
from aiovmm.runtime.tasks import finish
from aiovmm.runtime.threads import Thread

__all__ = ["Keeper"]

_TRIES = 3  # to leave it, each of which all tasks' cancellation may interrupt

Leave = Callable[[], Coroutine[Any, Any, None]]

_keepers: weakref.WeakSet[asyncio.Task[None]] = weakref.WeakSet()


class Keeper:
    """`what` names the thing in the warning, `leave` takes it apart, and `abandon` does what of that can be done once the loop is
    closed: it runs on another loop, in a thread of its own. `owner` is the object that may be forgotten, to which none of the
    others may refer; None where the loop refers to it as long as it is entered. To be made on the loop."""

    def __init__(self, owner: object, what: str, leave: Leave, abandon: Leave) -> None:
        self._what = what
        self._leave = leave
        self._abandon = abandon
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._told = False
        self._has_left = False
        self._wake = Event()
        self._lock = threading.Lock()
        self._task = self._loop.create_task(self._keep(), name=f"{what}: keeper")
        _keepers.add(self._task)
        self._forgotten = None if owner is None else weakref.finalize(owner, self._owner_gone)

    async def left(self) -> None:
        """It has been left, all of it. Idempotent. Not for `leave` itself, which the keeper's own task may run."""
        self._done()
        if not self._task.cancelling() and self._loop is asyncio.get_running_loop():
            await asyncio.wait([self._task])

    def _done(self) -> None:
        self._has_left = True
        if self._forgotten is not None:
            self._forgotten.detach()
        self._wake.set()

    def loop_closed(self) -> None:
        """Somebody has seen that the loop is closed. From any thread; idempotent."""
        with self._lock:
            if self._has_left or os.getpid() != self._pid:
                return
            self._has_left = True
        try:
            self._warn("its event loop was closed")
        finally:
            with suppress(RuntimeError):  # no thread can be had at the interpreter's end, which frees all
                Thread(self._let_go, name=f"{self._what}: is abandoned").start()

    async def _keep(self) -> None:
        try:
            await self._wake.wait()
        except asyncio.CancelledError:
            for _ in range(_TRIES):
                if not self._has_left:
                    with suppress(asyncio.CancelledError):  # the loop's end may come while it is being left
                        await finish(self._see_it_out())
            raise
        except GeneratorExit:  # this task is garbage, and its loop with it
            if self._loop.is_closed():
                self.loop_closed()
            raise

    async def _see_it_out(self) -> None:
        me = asyncio.current_task()
        while others := [t for t in asyncio.all_tasks() if t.cancelling() and t is not me and t not in _keepers]:
            await asyncio.wait(others)  # who was cancelled together with us may be about to leave it
        if not self._has_left:
            try:
                if not self._told:
                    self._told = True
                    self._warn("its program or its event loop ended")
            finally:
                await self._leave()
                self._done()

    def _owner_gone(self) -> None:
        """In whatever thread collects garbage, or at the interpreter's end."""
        if os.getpid() != self._pid:  # a forked child has copies only: sockets' names and the like are its parent's
            return
        try:
            self._loop.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:
            self.loop_closed()

    def _warn(self, why: str) -> None:
        text = f"{self._what} was entered and not left: {why}; use `async with`, or await aclose()"
        warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    def _let_go(self) -> None:
        try:
            asyncio.run(self._abandon())
        except Exception as exc:
            logging.getLogger("aiovmm").warning("%s: not all of it could be released: %r", printable(self._what), exc)
