"""Ends of many host ends at once, in turns: a guest may have a thousand connections, and forget them with one write."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter

from aiovmm.runtime.turns import UNCONTENDED, Job, next_turn

__all__ = ["Endings"]


class Endings:
    """Calls that are made in order, some at once and the rest in turns of the guest's. They never raise."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._job: Job | None = None

    def add(self, calls: list[Callable[[], None]]) -> None:
        """Make them, behind those that are yet to be made."""
        self._calls.extend(calls)
        if self._job is None or not self._job.due:
            self._some()

    def finish(self) -> None:
        """Make all of them now."""
        while self._calls:
            self._calls.popleft()()

    async def finished(self) -> None:
        """The same in turns, with those that come meanwhile."""
        while self._calls:
            self._some()
            await next_turn()

    def close(self) -> None:
        """Make all of them now, and none in any turn. Idempotent."""
        self.finish()
        if self._job is not None:
            self._job.close()
            self._job = None

    def _some(self) -> None:
        end = perf_counter() + UNCONTENDED
        while self._calls:
            self._calls.popleft()()
            if perf_counter() >= end:
                break
        if self._calls:
            if self._job is None:
                self._job = Job(self._some)
            self._job.again()
