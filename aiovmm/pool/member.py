"""One guest of a pool: a task that enters it, hands it over when it is ready, and leaves it when it is let go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from aiovmm.errors import StateError
from aiovmm.vm import VM

__all__ = ["Member", "Owner"]

Source = Callable[[str], AbstractAsyncContextManager[VM]]
Ready = Callable[[VM], Awaitable[object]]


class Owner(Protocol):
    """What a member tells its pool."""

    def started(self, member: Member) -> None:
        """It is ready for use."""

    def died(self, member: Member) -> bool:
        """It has ended. Whether nobody uses it, so that it can go."""

    def failed(self, member: Member, error: Exception) -> None:
        """It could not be started, or something went wrong when it was left."""

    def gone(self, member: Member) -> None:
        """Nothing is left of it."""


class Member:
    """`task` is its whole life. `release` may be called at any time and any number of times."""

    def __init__(self, name: str, source: Source, ready: Ready | None, owner: Owner) -> None:
        self.name = name
        self.vm: VM | None = None  # once it is ready
        self._owner = owner
        self._released = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._live(source, ready), name=f"guest {name} of a pool")
        self.task.add_done_callback(lambda _: owner.gone(self))  # also if it is cancelled before it has begun

    @property
    def has_ended(self) -> bool:
        """Its guest, which was ready: nobody else is to have it."""
        return self.vm is not None and self.vm.status is not None

    def release(self) -> None:
        """Leave the guest: at once if it is not ready yet."""
        is_again = self._released.is_set()
        self._released.set()
        if self.vm is None and not is_again:  # what its source does at its end is not to be cancelled, too
            self.task.cancel()

    async def _live(self, source: Source, ready: Ready | None) -> None:
        try:
            async with source(self.name) as vm:
                if ready is not None:
                    await ready(vm)
                self.vm = vm
                self._owner.started(self)
                await self._until_it_may_go(vm)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():  # what `ready` or the source has awaited was: no end of ours
                error = StateError(f"guest {self.name!r}: what its start, or its end, has awaited was cancelled")
                error.__cause__ = exc
                self._owner.failed(self, error)
        except Exception as exc:
            self._owner.failed(self, exc)

    async def _until_it_may_go(self, vm: VM) -> None:
        ended = asyncio.ensure_future(vm.wait())
        released = asyncio.ensure_future(self._released.wait())
        try:
            await asyncio.wait((ended, released), return_when=asyncio.FIRST_COMPLETED)
            if not self._released.is_set() and not self._owner.died(self):
                await released
        finally:
            ended.cancel()
            released.cancel()
