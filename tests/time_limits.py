"""A test's time limit on every event loop, and an end of those that do not heed it.

pytest-timeout raises its failure from a signal's handler, which uvloop takes for a callback's that failed: what hangs there
hung for ever. So a coroutine has the limit of its loop's clock, too. One that does not let itself be cancelled, or whose loop
waits for a task that does not, ends the process: with the stack of every thread, and soon, instead of with whatever limit those
have who wait for it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import functools
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from pytest_asyncio.plugin import PytestAsyncioFunction

GRACE = 60.0
"""Seconds that a test has to end in once its limit, and as much again, is over."""
_LIMIT = pytest.StashKey[float]()


@pytest.hookimpl(optionalhook=True)  # after the nested host's, whose tests run elsewhere
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    item.stash[_LIMIT] = settings.timeout
    stderr = item.config.stash[fault_handler_stderr_fd_key]  # that which pytest does not capture
    faulthandler.dump_traceback_later(2 * settings.timeout + GRACE, exit=True, file=stderr)


@pytest.hookimpl(wrapper=True, trylast=True)  # until the last of what a test has set up is torn down
def pytest_runtest_protocol() -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, PytestAsyncioFunction) and not hasattr(item.obj, "hypothesis"):
            item.obj = _limited(item, item.obj)


def _limited(
    item: pytest.Item, test: Callable[..., Coroutine[Any, Any, None]]
) -> Callable[..., Coroutine[Any, Any, None]]:
    @functools.wraps(test)
    async def limited(*args: Any, **kwargs: Any) -> None:
        limit = item.stash.get(_LIMIT, None)
        try:
            async with asyncio.timeout(limit) as timeout:
                await test(*args, **kwargs)
        except TimeoutError as exc:
            if not timeout.expired():
                raise
            pytest.fail(f"it hangs: its {limit:g} seconds are over ({exc!r})")

    return limited
