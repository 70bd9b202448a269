"""Time-outs that say what was waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["time_limit"]


@asynccontextmanager
async def time_limit(seconds: float | None, what: str) -> AsyncIterator[None]:
    """asyncio.timeout, whose TimeoutError names what did not come. One that is raised within passes as it is."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"{what}: not within {seconds:g} s") from None
        raise
