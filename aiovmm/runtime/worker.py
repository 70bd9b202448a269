"""A thread for calls into the host that take long, so that the event loop, and with it every other guest, goes on meanwhile.

KVM answers some ioctls (a doorbell bound or unbound, a route, a memory slot) only when each vCPU has left what it was doing: some
milliseconds, and a guest causes as many of them as it likes. The vCPU whose access it was waits for the answer, nobody else.

A worker is one machine's: its calls are made in the order in which they were asked for, one at a time, and guests do not wait for
each other's. It has no thread of its own, but one of the process's while it has calls (crew.py): a thousand machines cost no
thousand threads. Nor is it one of the event loop's executor, which is the embedder's to fill.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from aiovmm.runtime import crew
from aiovmm.runtime.dataclass import dataclass

__all__ = ["Worker"]


@dataclass(eq=False)
class _Call:
    work: Callable[[], Any]
    then: Callable[[BaseException | None], None] | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any] | None
    result: Any = None
    error: BaseException | None = None


class Worker:
    """`name` is the thread's while it makes a call. `submit` and `aclose` belong to the event loop's thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._calls: deque[_Call] = deque()
        self._busy = False  # a thread makes calls, and looks for further ones before it leaves

    def submit(
        self, work: Callable[[], Any], then: Callable[[BaseException | None], None] | None = None
    ) -> asyncio.Future[Any]:
        """Have `work` called in a thread; then `then` on the loop, with what it raised, and the result (or that) in the future.

        Nobody need wait for the future, and cancelling it takes nothing back: `work` and `then` are called in any case.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            self._calls.append(_Call(work, then, loop, future))
            if self._busy:
                return future
            self._busy = True
        self._go_on()
        return future

    async def aclose(self) -> None:
        """Wait until all calls are made. Idempotent; there may be later ones."""
        if self._busy:
            await asyncio.wait([self.submit(_nothing)])

    def _go_on(self) -> None:
        try:
            crew.run(self.name, self._serve)
        except RuntimeError:  # the host has no room for a thread: slow is better than never
            self._serve()()

    def _serve(self) -> Callable[[], None]:
        """Make all calls, and leave the last one to be told of."""
        while True:
            call = self._calls.popleft()
            _make(call)
            if not self._calls:
                return partial(self._leave, call)
            _tell(call)

    def _leave(self, last: _Call) -> None:
        """In order: what is asked for from now on is not made before this was told."""
        _tell(last)
        with self._lock:
            self._busy = bool(self._calls)
        if self._busy:
            self._go_on()


def _nothing() -> None:
    return


def _make(call: _Call) -> None:
    try:
        call.result = call.work()
    except BaseException as exc:
        call.error = exc


def _tell(call: _Call) -> None:
    with suppress(RuntimeError):  # the loop was closed: nobody waits any more
        call.loop.call_soon_threadsafe(_settle, call)


def _settle(call: _Call) -> None:
    """The call lets go of how it ended: a traceback knows frames that know the call, and what was made in them would stay until
    the next collection."""
    future, error, call.future, call.error = call.future, call.error, None, None
    try:
        if call.then is not None:
            call.then(error)
    finally:  # whatever becomes of that: a vCPU may wait for the call
        if future is not None:
            _answer(future, call.result, error)


def _answer(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        future.exception()  # seen: whoever waits raises it, and nobody need wait
