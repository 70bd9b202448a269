"""Time-outs that say what was waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiovmm.errors import UsageError
from aiovmm.runtime.awake import awake_timeout

__all__ = ["check_seconds", "time_limit"]


def check_seconds(seconds: object, what: str) -> None:
    """None, or a number of seconds. Raises UsageError: for NaN asyncio would wait for ever, and others fail half-way."""
    number = (
        isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds == seconds
    )  # which NaN is not
    if seconds is not None and not number:
        raise UsageError(f"{what}: {seconds!r} is not a number of seconds")


@asynccontextmanager
async def time_limit(seconds: float | None, what: str) -> AsyncIterator[None]:
    """awake_timeout, whose TimeoutError names what did not come. One that is raised within passes as it is."""
    check_seconds(seconds, what)
    limit: asyncio.Timeout | None = None
    try:
        async with awake_timeout(seconds) as limit:
            yield
    except TimeoutError:
        if limit is not None and limit.expired():
            raise TimeoutError(f"{what}: not within {seconds:g} s") from None
        raise
