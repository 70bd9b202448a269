"""How the examples end: with an exit code, and one sentence where something went wrong; by a signal with 128 and its number,
and no guest left."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from aiovmm import AiovmmError

__all__ = ["exit_code"]


def exit_code(begin: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """That of the work that `begin` makes."""
    try:
        return asyncio.run(_unless_signalled(begin))
    except (AiovmmError, OSError, ExceptionGroup) as exc:
        error: BaseException = exc
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, AiovmmError | OSError):
            raise
        print(error, file=sys.stderr)
        return 1


async def _unless_signalled(begin: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Cancelled, it leaves all of its `async with`."""
    task, came = asyncio.current_task(), list[int]()
    assert task is not None

    def leave(number: int) -> None:
        came.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, leave, number)
    try:
        return await begin()
    except asyncio.CancelledError:
        if not came:
            raise
        return 128 + came[0]
