"""A thread for calls into the host that take long, so that the event loop, and with it every other guest, goes on meanwhile.

KVM answers some ioctls (a doorbell bound or unbound, a route, a memory slot) only when each vCPU has left what it was doing: some
milliseconds, and a guest causes as many of them as it likes. The vCPU whose access it was waits for the answer, nobody else.

A worker is one machine's, so guests do not wait for each other's calls, and it is no executor of the event loop's, which is the
embedder's to fill. Its calls are made in the order in which they were asked for.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.threads import name_this_thread

__all__ = ["Worker"]

IDLE = 1.0
"""Seconds. A guest that makes slow calls makes several."""


@dataclass(eq=False)
class _Call:
    work: Callable[[], Any]
    then: Callable[[BaseException | None], None] | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Worker:
    """`name` is the thread's, for the host's tools; `idle` seconds without a call end it, and the next call starts another.
    `submit` and `aclose` belong to the event loop's thread."""

    def __init__(self, name: str, *, idle: float = IDLE) -> None:
        self.name = name
        self._idle = idle
        self._changed = threading.Condition()
        self._calls: deque[_Call] = deque()
        self._thread: threading.Thread | None = None  # under `_changed`; cleared by the thread when it ends

    def submit(
        self, work: Callable[[], Any], then: Callable[[BaseException | None], None] | None = None
    ) -> asyncio.Future[Any]:
        """Have `work` called in the thread; then `then` on the loop, with what it raised, and the result (or that) in the future.

        Nobody need wait for the future, and cancelling it takes nothing back: `work` and `then` are called in any case.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        call = _Call(work, then, loop, future)
        with self._changed:
            self._calls.append(call)
            self._changed.notify()
            if self._thread is not None:
                return future
            self._thread = thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the host has no room for a thread: slow is better than never
            self._thread = None
            self._calls.remove(call)
            _make(call)
            _settle(call)
        return future

    async def aclose(self) -> None:
        """Wait until all calls are made, and end the thread. Idempotent; a later call starts another."""
        if self._thread is not None:
            await asyncio.wait([self.submit(_nothing)])
        self.end()

    def end(self) -> None:
        """The same when all calls are made, for who knows that."""
        with self._changed:
            thread = self._thread
            if thread is not None:
                self._calls.append(_END)
                self._changed.notify()
        if thread is not None:
            thread.join()  # it has nothing left to do

    def _run(self) -> None:
        name_this_thread()
        while (call := self._next()) is not None:
            _make(call)
            try:
                call.loop.call_soon_threadsafe(_settle, call)
            except RuntimeError:  # the loop was closed: nobody waits any more
                continue

    def _next(self) -> _Call | None:
        with self._changed:
            self._changed.wait_for(self._calls.__len__, self._idle)
            call = self._calls.popleft() if self._calls else None
            if call is None or call is _END:
                self._thread = None
                return None
            return call


def _nothing() -> None:
    return


def _make(call: _Call) -> None:
    try:
        call.result = call.work()
    except BaseException as exc:
        call.error = exc


def _settle(call: _Call) -> None:
    try:
        if call.then is not None:
            call.then(call.error)
    finally:  # whatever becomes of that: a vCPU may wait for the call
        _answer(call)


def _answer(call: _Call) -> None:
    if call.future.done():
        return
    if call.error is None:
        call.future.set_result(call.result)
    else:
        call.future.set_exception(call.error)
        call.future.exception()  # seen: whoever waits raises it, and nobody need wait


_END: Any = object()
