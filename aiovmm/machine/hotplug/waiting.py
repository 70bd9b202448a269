"""Waiting for a guest to do what it was told: it may not, or end meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from aiovmm.errors import HotplugTimeout, StateError
from aiovmm.runtime.awake import awake_timeout

if TYPE_CHECKING:
    from aiovmm.machine.ending import Ending

__all__ = ["wait_for_guest"]

T = TypeVar("T")


async def wait_for_guest(
    ending: Ending, future: asyncio.Future[T], timeout: float | None, what: str, not_done: str, hint: str
) -> T:
    """The result of `future`, which a guest's doing brings. Raises HotplugTimeout, which says `what` was to be done, that it was
    `not_done`, and what to do about it; StateError if the guest ends. Cancelled, it leaves the future as it is."""
    stopped = asyncio.ensure_future(ending.stopped.wait())
    either: list[asyncio.Future[Any]] = [future, stopped]
    try:
        with suppress(TimeoutError):
            async with awake_timeout(timeout):
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
    if future.done():
        return future.result()
    if ending.stopped.is_set():
        status = ending.life.status
        raise StateError(
            f"{what}: the guest has ended" + (f" ({status.reason.value}: {status.detail})" if status else "")
        )
    raise HotplugTimeout(what, f"{not_done} within {timeout:.3g} s", hint)
