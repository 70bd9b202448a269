"""A few threads of somebody's own, for calls that may block as long as they like: they are bounded, and hold up nobody else's.

As concurrent.futures has them, with what a monitor cannot do without: who asks is never blocked by a thread that cannot be had
(threads.py), and the process does not wait at its end for what hangs, on a server that is gone or a disk that never answers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

from aiovmm.runtime.threads import Thread, name_this_thread

__all__ = ["Hands"]

P = ParamSpec("P")
T = TypeVar("T")


class Hands:
    """At most `most` of them, called `name`; each is started when it is needed and does `begin` first. What that raises is what
    the calls raise."""

    def __init__(self, most: int, name: str, begin: Callable[[], object] = name_this_thread) -> None:
        self._most, self._name, self._begin = most, name, begin
        self._threads: list[Thread] = []
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._idle = 0
        self._ends = False

    def submit(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As an Executor does. Raises RuntimeError where no thread can be had, and there is none; then it is not called."""
        outcome: Future[T] = Future()
        with self._changed:
            if self._ends:
                raise RuntimeError(f"{self._name}: its threads have been ended")
            if self._idle <= len(self._calls) and len(self._threads) < self._most:
                self._start_one()
            self._calls.append((outcome, partial(call, *args, **kwargs)))
            self._changed.notify()
        return outcome

    @property
    def waiting(self) -> int:
        """Calls that no thread makes yet."""
        return len(self._calls)

    def _start_one(self) -> None:
        thread = Thread(self._serve, name=f"{self._name}_{len(self._threads)}")
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
            return  # those that there are make the call, later
        self._threads.append(thread)

    def _serve(self) -> None:
        error: BaseException | None = None
        try:
            self._begin()
        except BaseException as exc:
            error = exc
        while self._serve_one(error):
            pass

    def _serve_one(self, error: BaseException | None) -> bool:
        """Whether there may be another. What the call refers to does not wait for that."""
        with self._changed:
            self._idle += 1
            while not self._calls and not self._ends:
                self._changed.wait()
            self._idle -= 1
            if not self._calls:
                return False
            outcome, call = self._calls.popleft()
        if outcome.set_running_or_notify_cancel():
            _make(outcome, call, error)
        del outcome, call  # which the traceback of what failed knows, too
        return True

    def shutdown(self, wait: bool = True) -> None:
        """As an Executor does: calls that were asked for are made yet."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        for thread in self._threads if wait else ():
            thread.join()


def _make(outcome: Future[T], call: Callable[[], T], error: BaseException | None) -> None:
    try:
        if error is not None:
            raise error.with_traceback(None)  # which would grow with each call
        outcome.set_result(call())
    except BaseException as exc:
        outcome.set_exception(exc)
    finally:  # else what failed, and all that it refers to, is kept by this frame, which is in its traceback
        del outcome, call, error
