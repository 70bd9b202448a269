"""Where a command's coroutine runs: an event loop of its own, made once it is sure that there can be one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from aiovmm.runtime.stdio import require_descriptors

__all__ = ["run", "run_on_uvloop"]

_T = TypeVar("_T")
_FEW = 4  # a loop of asyncio's, and a socket
_MORE = 12  # uvloop's, a socket, and what a terminal, or files, need


def run(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """What `work()` returns, for one that asks another process for something.

    Raises OSError if there are too few descriptors, before anything is begun that would have to be said as well: a loop that was
    half made, a coroutine that was never awaited."""
    return _on(None, _FEW, work)


def run_on_uvloop(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """The same for one that does more than that. uvloop aborts the process where it has too few descriptors."""
    import uvloop

    return _on(uvloop.new_event_loop, _MORE, work)


def _on(
    factory: Callable[[], asyncio.AbstractEventLoop] | None,
    descriptors: int,
    work: Callable[[], Coroutine[Any, Any, _T]],
) -> _T:
    require_descriptors(descriptors)
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work())
