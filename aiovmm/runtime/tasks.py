"""Tasks of one VM, and work that a cancelled caller must not leave half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from aiovmm.errors import StateError
from aiovmm.runtime import crew

__all__ = [
    "SERVED",
    "TaskScope",
    "bury",
    "fail",
    "finish",
    "in_thread",
    "in_thread_unless",
    "opened_in_thread",
    "side_by_side",
]

SERVED: ContextVar[Callable[[], object | None]] = ContextVar("SERVED")
"""The device whose `run` a task is, or was started by: what code that belongs to nobody works for. A weak reference."""

OnError = Callable[[str, BaseException], None]
T = TypeVar("T")
P = ParamSpec("P")


class TaskScope:
    """A group of tasks that ends as a whole.

    Unlike asyncio.TaskGroup, a child that fails neither cancels its siblings nor its owner: `on_error` hears of it.
    """

    def __init__(self, on_error: OnError) -> None:
        self._on_error = on_error
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def create(self, coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start `coro` as a task of this scope. Raises StateError (and closes `coro`) after `aclose`."""
        if self._closed:
            coro.close()
            raise StateError(f"task {name!r} comes too late: its VM is being torn down")
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    async def aclose(self) -> None:
        """Cancel what runs and wait for its end. Idempotent; the calling task is never waited for."""
        self._closed = True
        me = asyncio.current_task()
        self._tasks -= {task for task in self._tasks if bury(task)}
        while tasks := [t for t in self._tasks if t is not me]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        try:
            error = task.exception()
        except asyncio.CancelledError as exc:
            _forget_where(exc)
        else:
            if error is not None:
                self._on_error(task.get_name(), error)


def _forget_where(cancelled: asyncio.CancelledError) -> None:
    """A task that was cancelled keeps the tracebacks of that until it is asked. They know all frames, and these the task or its
    group: what was made there would stay until the next collection."""
    one: BaseException | None = cancelled
    while isinstance(one, asyncio.CancelledError) and one.__traceback__ is not None:
        one.__traceback__ = None
        one = one.__context__


def bury(task: asyncio.Task[Any]) -> bool:
    """Whether the loop of an unfinished task was closed, so that it can be neither cancelled nor awaited. What its coroutine does
    at its end without waiting is done then."""
    if task.done() or not task.get_loop().is_closed():
        return False
    coro = task.get_coro()
    if coro is not None:
        with suppress(RuntimeError):  # it would wait
            coro.close()
    return True


def fail(waiter: asyncio.Future[Any], error: Exception) -> None:
    """Whoever waits for it gets `error`, unless it has ended, or the loop that it would be given on was closed."""
    if not waiter.done() and not waiter.get_loop().is_closed():
        waiter.set_exception(error)


async def finish(work: Coroutine[Any, Any, T] | asyncio.Future[T], given_up: Callable[[], object] | None = None) -> T:
    """Run `work` to its end even if the caller is cancelled; then the cancellation is raised, and the result is lost.
    `given_up` is called when that is known, so that the end may come sooner."""
    answer: _Answer[T] = _Answer(asyncio.get_running_loop())
    asyncio.ensure_future(work).add_done_callback(answer.take)
    return await answer.wait(given_up)


async def side_by_side(*works: Coroutine[Any, Any, object]) -> None:
    """All of them to their ends, which come sooner if one fails or the caller is cancelled: then they are, and are waited for.
    Raises what the first of them raised of its own accord."""
    tasks = [asyncio.ensure_future(work) for work in works]

    def ended(task: asyncio.Task[object]) -> None:
        if not task.cancelled() and task.exception() is not None:
            for other in tasks:
                other.cancel()

    for task in tasks:
        task.add_done_callback(ended)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise next((error for error in errors if not isinstance(error, asyncio.CancelledError)), errors[0])


async def in_thread(name: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call that blocks, in a thread of ours, which is called `name` meanwhile: the event loop's executor is the
    embedder's. A caller that is cancelled waits for the thread: what it works on is not taken away under it."""
    return await _lend(name, partial(call, *args, **kwargs)).wait(None)


async def in_thread_unless(given_up: Callable[[], object], name: str, call: Callable[[], T]) -> T:
    """As `in_thread`; `given_up` is called, on the loop, when the caller has been cancelled: the thread may then end sooner."""
    return await _lend(name, call).wait(given_up)


async def opened_in_thread(
    name: str, close: Callable[[T], object], call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """As `in_thread`, for what somebody has to close: where a cancelled caller does not hear of it, `close` does, in a thread as
    well. A descriptor that nobody knows keeps its lock for as long as the process lives."""
    opened: list[T] = []
    try:
        await in_thread(name, lambda: opened.append(call(*args, **kwargs)))
    except asyncio.CancelledError:
        if opened:
            await in_thread(name, close, opened.pop())
        raise
    return opened[0]


class _Answer(Generic[T]):
    """What becomes of something that goes on though its caller is cancelled. One waits for it: in a single turn of the loop,
    where a shielded future takes three."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._there = False
        self._result: Any = None
        self._error: BaseException | None = None

    async def wait(self, given_up: Callable[[], object] | None) -> T:
        """The result, or what it raised; `given_up` is called at each cancellation, which is raised at the end."""
        cancelled: asyncio.CancelledError | None = None
        while not self._there:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError as exc:
                cancelled = exc
                if given_up is not None:
                    given_up()
        error, self._error = self._error, None
        if cancelled is not None:  # what the caller asked for comes before the result
            error = cancelled
        if error is not None:
            try:
                raise error
            finally:  # its traceback knows this frame: what was made for the call would stay until the next collection
                del error, cancelled
        result: T = self._result
        return result

    def take(self, done: asyncio.Future[T]) -> None:
        """Of a future that is done."""
        if done.cancelled():
            self.tell(None, asyncio.CancelledError())
        elif (error := done.exception()) is not None:
            self.tell(None, error)
        else:
            self.tell(done.result(), None)

    def make(self, call: Callable[[], T]) -> Callable[[], None]:
        """Make the call in another thread; gives who tells the loop of it."""
        try:
            return partial(self._tell_soon, call(), None)
        except BaseException as exc:
            return partial(self._tell_soon, None, exc)

    def _tell_soon(self, result: Any, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.tell, result, error)

    def tell(self, result: Any, error: BaseException | None) -> None:
        """On the loop."""
        self._there, self._result, self._error = True, result, error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _lend(name: str, call: Callable[[], T]) -> _Answer[T]:
    answer: _Answer[T] = _Answer(asyncio.get_running_loop())
    work = partial(answer.make, call)
    try:
        crew.run(name, work)
    except RuntimeError:  # the host has no room for a thread: slow is better than never
        work()()
    return answer
