"""A place that a console is joined to for as long as an `async with` lasts."""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Self

from aiovmm.console.stream import Console
from aiovmm.console.terminal import AttachEnd
from aiovmm.errors import StateError
from aiovmm.runtime.keeper import Keeper
from aiovmm.runtime.tasks import bury

__all__ = ["LINGER", "LINGER_LONGEST", "ConsoleBackend", "linger", "type_in"]

LINGER = 1.0
"""Seconds that the other side has, at the end, to take more of the output that is left."""
LINGER_LONGEST = 10.0
"""Seconds that it has for all of it."""


async def linger(tasks: Iterable[asyncio.Future[Any]], progress: Callable[[], object]) -> None:
    """Wait for `tasks`, for as long as `progress()` is another each `LINGER`, and no longer than `LINGER_LONGEST`: of the time
    in which this process could run."""
    from aiovmm.runtime.awake import awake_budget, awake_timeout  # not at a start

    pending = {task for task in tasks if not task.done()}
    with awake_budget(LINGER_LONGEST) as left:
        while pending and left():
            before = progress()
            with suppress(TimeoutError):
                async with awake_timeout(LINGER):
                    await asyncio.wait(pending)
            pending = {task for task in pending if not task.done()}
            if pending and progress() == before:
                return


_LOOKS = round(LINGER_LONGEST / LINGER)


async def type_in(console: Console, data: bytes, gone: Callable[[], bool]) -> None:
    """Give the guest `data`, a few KiB, when it has room. Raises ConnectionResetError if whoever has typed it is `gone`, and the
    guest takes nothing for `LINGER_LONGEST` seconds: one that hangs would have all keep their place who ever typed to it."""
    looks, taken = _LOOKS, console.bytes_in
    while looks:
        try:
            async with asyncio.timeout(LINGER):
                await console.drain()
        except TimeoutError:
            stands = gone() and console.bytes_in == taken
            looks, taken = looks - 1 if stands else _LOOKS, console.bytes_in
        else:
            console.write(data)
            return
    raise ConnectionResetError(errno.ECONNRESET, "the guest takes no input, and who typed it has gone")


class ConsoleBackend(ABC):
    """Carries a console's output out, and input in, between entering and leaving. The guest is never held up by it.

    A host's error ends the back end, not the guest: `wait` raises it, and so does leaving if nobody waited.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._task: asyncio.Task[AttachEnd] | None = None
        self._keeper: Keeper | None = None
        self._reported = False

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the console can be found, for people: a path, or a few words."""

    async def __aenter__(self) -> Self:
        await self.open()
        self._keeper = Keeper(None, f"the console {self._console.name} at {self.place}", self._leave, self._leave)
        return self

    async def open(self) -> None:
        """Enter it, where something else sees to it that it is left."""
        if self._task is not None:
            raise StateError(f"the console at {self.place} is entered already")
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        self._task = asyncio.create_task(self._run(), name=f"{self._console.name} at {self.place}")

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def wait(self) -> AttachEnd:
        """Wait until it has ended by itself, and why. Cancelling `wait` does not end it."""
        if self._task is None:
            raise StateError(f"the console at {self.place} is not entered")
        await asyncio.wait([self._task])
        self._reported = True
        if self._task.cancelled():
            return AttachEnd.DETACHED
        return self._task.result()

    async def aclose(self) -> None:
        """Let the output that has been printed go out, while the other side takes it (see `linger`), then let go. Idempotent."""
        try:
            await self._leave()
        finally:
            if self._keeper is not None:
                await self._keeper.left()

    async def _leave(self) -> None:
        task = self._task
        try:
            if task is not None and not task.done() and not bury(task):
                await self._end(task)
        finally:
            await self._close()
        if task is not None and task.done() and not task.cancelled() and not self._reported:
            self._reported = True
            task.result()

    async def _end(self, task: asyncio.Task[AttachEnd]) -> None:
        try:
            self._finish()
            await linger([task], self._progress)
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _open(self) -> None:  # noqa: B027 (not every place has something to open)
        """Acquire the place; a failure raises, and `_close` follows."""

    @abstractmethod
    async def _run(self) -> AttachEnd:
        """Carry bytes until the guest or the other side is gone."""

    @abstractmethod
    def _finish(self) -> None:
        """Make `_run` return once the output printed by now has gone out."""

    def _progress(self) -> object:
        """Anything that changes when the other side takes output."""
        return None

    async def _close(self) -> None:  # noqa: B027
        """Release what `_open` acquired. Idempotent; `_run` has ended."""
