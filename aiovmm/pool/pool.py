"""The pool: how many guests there are and who gets which. A guest's own life is a member's.

wanted = those who wait + spares that are missing          started as long as there are fewer than `max`, `starting` at once
ready  --> the first who waits, else a spare               a spare that dies is replaced, ever more slowly if they all do
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from aiovmm.config import VMConfig
from aiovmm.errors import StateError, UsageError
from aiovmm.events import EventStream, Subscription
from aiovmm.pool.events import PoolEvent, PoolEventKind, PoolStats
from aiovmm.pool.member import Member
from aiovmm.runtime.arguments import whole
from aiovmm.runtime.home import HomeLoop
from aiovmm.runtime.tasks import finish
from aiovmm.runtime.timeouts import time_limit
from aiovmm.runtime.traces import let_go
from aiovmm.vm import VM

if TYPE_CHECKING:
    from aiovmm.confine.confinement import Confinement
    from aiovmm.pool.workers.process import Worker
    from aiovmm.pool.workers.source import Workers

__all__ = ["Pool"]

_FIRST_DELAY, _LONGEST_DELAY = 0.05, 30.0  # seconds until spares are tried again


class Pool:
    """Guests of one kind, each for one use.

        async with Pool(config, warm=4, max=100) as pool:
            async with pool.acquire() as vm:
                ...                                     # it runs; afterwards it is gone, and another takes its place

    `source` is a VMConfig, whose guests are called NAME-0, NAME-1, ..., or a function that is given a name and returns a context
    manager with a running VM. `warm` spares are kept ready; `max` is how many guests there are at most at a time, in any
    state; `starting` bounds those that are being started at once (two for each processor). `ready(vm)` is awaited before a guest
    counts as ready: `lambda vm: vm.serial.expect(rb"login: ")`.
    With `workers` the guests are spread over so many processes, an event loop each: for more than one loop can serve, and so
    that what kills one process leaves the others' guests. `source` is a VMConfig then, and what of a VM needs its machine or a
    device as an object raises StateError (docs/embedding.md).
    """

    def __init__(
        self,
        source: VMConfig | Callable[[str], AbstractAsyncContextManager[VM]],
        *,
        warm: int = 0,
        max: int = 1000,
        starting: int | None = None,
        workers: int = 0,
        confinement: Confinement | None = None,
        ready: Callable[[VM], Awaitable[object]] | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(source, VMConfig) and not callable(source):
            raise UsageError(f"Pool({source!r}): a VMConfig, or a function that is given a name")
        if ready is not None and not callable(ready):
            raise UsageError(f"Pool(ready={ready!r}): a function that is given a VM")
        if not isinstance(name, str | None):
            raise UsageError(f"Pool(name={name!r}) is not text")
        self.name = name or (source.name if isinstance(source, VMConfig) else "pool")
        whole(max, "Pool(max=)", 1)
        whole(warm, f"Pool(max={max}, warm=)", 0, max)
        self._at_once = whole(2 * len(os.sched_getaffinity(0)) if starting is None else starting, "Pool(starting=)", 1)
        if whole(workers, "Pool(workers=)") and not isinstance(source, VMConfig):
            raise UsageError(f"Pool(workers={workers}): a VMConfig, since no function goes to a process")
        if confinement is not None and not workers:
            raise UsageError("Pool(confinement=...) is for workers: this process keeps its rights, say workers= too")
        self._workers: Workers | None = None
        if isinstance(source, VMConfig):
            self._workers = self._make_workers(source, workers, confinement) if workers else None
            self._source = self._workers.guest if self._workers is not None else _guests_of(source)
        else:
            self._source = source
        self._warm, self._max, self._ready = warm, max, ready
        self._home = HomeLoop(f"pool {self.name!r}")
        self._events: EventStream[PoolEvent] = EventStream(self._home, kept=0)  # nobody can ask for what was before
        self._members: set[Member] = set()
        self._starting: set[Member] = set()
        self._spares: deque[Member] = deque()
        self._used: dict[Member, asyncio.Task[Any] | None] = {}  # and which task took it
        self._waiters: deque[asyncio.Future[Member]] = deque()
        self._changed = asyncio.Event()  # renewed each time
        self._made = self._died = self._failed = self._in_a_row = 0
        self._retry: asyncio.TimerHandle | None = None
        self._state = "not entered"

    def __repr__(self) -> str:
        return f"<Pool {self.name!r} {self._state}: {len(self._spares)} warm, {len(self._used)} in use>"

    async def __aenter__(self) -> Self:
        """Begin to start the spares. They are not waited for: see `warmed`."""
        self._home.check()
        if self._state != "not entered":
            raise StateError(f"pool {self.name!r} has been entered before; make a new one")
        self._state = "open"
        self._fill()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- using it

    @asynccontextmanager
    async def acquire(self, timeout: float | None = None) -> AsyncIterator[VM]:
        """A running guest that nobody has used; when the block is left it is gone.

        First come, first served. Raises TimeoutError if there is none within `timeout` seconds, StateError if the pool is not
        open (any more), and what a guest could not be started for.
        """
        member = await self._take(timeout)
        assert member.vm is not None, "it is ready"
        try:
            yield member.vm
        finally:
            self._used.pop(member, None)
            self._emit(PoolEventKind.RELEASED, member)
            await finish(self._leave(member))

    async def warmed(self, timeout: float | None = None) -> None:
        """Wait until all spares are there. Raises TimeoutError, StateError if the pool is closed meanwhile."""
        self._home.check()
        async with time_limit(timeout, f"{self._warm} spares of pool {self.name!r}"):
            while len(self._spares) < self._warm:
                self._check_open()
                await self._changed.wait()

    async def drain(self, timeout: float | None = None) -> None:
        """Let the guests that are in use come to their ends, and give nobody another. Spares go at once. It does not end them:
        leaving the pool does. Raises TimeoutError if some are in use after `timeout` seconds, and StateError in a task that has
        taken one of them, which would wait for itself: nothing is changed then."""
        self._home.check()
        task = asyncio.current_task()
        if own := [member.name for member, user in self._used.items() if user is task]:
            raise StateError(
                f"drain() of pool {self.name!r} waits until all guests were given back, and this task has taken "
                f"{', '.join(own)}: leave its `async with pool.acquire()` before, or drain in a task of its own"
            )
        self._shut("being drained")
        async with time_limit(timeout, f"the users of pool {self.name!r}"):
            while self._members:
                await self._changed.wait()

    async def aclose(self) -> None:
        """End all guests, those in use, too. Idempotent; completes even if the caller is cancelled."""
        self._home.check()
        self._shut("closed")
        await finish(self._end())

    def events(self) -> Subscription[PoolEvent]:
        """What happens from now on; ends when the pool is closed."""
        self._home.check_thread()
        return self._events.subscribe()

    def stats(self) -> PoolStats:
        """Numbers of now, and since it was entered."""
        leaving = len(self._members) - len(self._starting) - len(self._spares) - len(self._used)
        return PoolStats(
            len(self._starting),
            len(self._spares),
            len(self._used),
            leaving,
            len(self._waiters),
            self._made,
            self._died,
            self._failed,
        )

    # -- who gets which

    async def _take(self, timeout: float | None) -> Member:
        self._home.check()
        self._check_open()
        member = self._spares.popleft() if self._spares else await self._wait(timeout)
        self._used[member] = asyncio.current_task()
        self._emit(PoolEventKind.ACQUIRED, member)
        self._fill()
        return member

    async def _wait(self, timeout: float | None) -> Member:
        waiter: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._fill()
        try:
            async with time_limit(timeout, f"a guest of pool {self.name!r}"):
                return await waiter
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(waiter.result())
            raise

    def _give_back(self, member: Member) -> None:
        """It came just when nobody wanted it any more. If it has ended meanwhile nobody will be told (`died`): no spare."""
        if member.has_ended:
            member.release()
        else:
            self._give(member)
            self._fill()

    def _give(self, member: Member) -> None:
        """To the first who waits, or to the spares, if one is missing."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(member)
                return
        if self._state == "open" and len(self._spares) < self._warm:
            self._spares.append(member)
        else:
            member.release()

    def _fill(self) -> None:
        """Start what is wanted and may be."""
        self._changed.set()
        self._changed = asyncio.Event()
        if self._state != "open":
            return
        spares = 0 if self._retry is not None else max(0, self._warm - len(self._spares))
        while len(self._starting) < min(self._at_once, len(self._waiters) + spares) and len(self._members) < self._max:
            member = Member(f"{self.name}-{self._made}", self._source, self._ready, self)
            self._made += 1
            self._members.add(member)
            self._starting.add(member)

    async def _leave(self, member: Member) -> None:
        member.release()
        await asyncio.wait([member.task])

    def _check_open(self) -> None:
        if self._state != "open":
            raise StateError(f"pool {self.name!r} is {self._state}: guests are to be had inside `async with`")

    # -- what members tell

    def started(self, member: Member) -> None:
        """See Owner."""
        self._starting.discard(member)
        self._emit(PoolEventKind.READY, member)
        self._give(member)
        self._fill()

    def died(self, member: Member) -> bool:
        """See Owner."""
        if member not in self._spares:
            return False
        self._spares.remove(member)
        self._died += 1
        status = member.vm.status if member.vm is not None else None
        self._emit(PoolEventKind.DIED, member, f"{status.reason.value}: {status.detail}" if status else "")
        if self._workers is None or not self._workers.was_lost(status):  # else they are held back once for all of it
            self._hold_back()
        return True

    def failed(self, member: Member, error: Exception) -> None:
        """See Owner. Who waits first hears of it: there is nothing better to give."""
        let_go(error)  # else all there was of the guest stays as long as somebody has this
        self._failed += 1
        self._emit(PoolEventKind.FAILED, member, str(error) or type(error).__name__, error)
        if member in self._starting:
            self._hold_back()
            while self._waiters:
                if not (waiter := self._waiters.popleft()).done():
                    waiter.set_exception(error)
                    break

    def gone(self, member: Member) -> None:
        """See Owner."""
        self._members.discard(member)
        self._starting.discard(member)
        if member in self._spares:  # its task was cancelled by somebody else
            self._spares.remove(member)
        self._emit(PoolEventKind.GONE, member)
        self._fill()

    def _make_workers(self, config: VMConfig, count: int, confinement: Confinement | None) -> Workers:
        from aiovmm.confine.confinement import Confinement  # for who wants some
        from aiovmm.pool.workers.source import Workers

        confinement = confinement or Confinement()
        return Workers(config, count, self.name, confinement, self._worker_ready, self._worker_died)

    def _worker_ready(self, worker: Worker) -> None:
        self._events.emit(PoolEvent(PoolEventKind.WORKER_READY, "", time.time(), worker=worker.index))

    def _worker_died(self, worker: Worker) -> None:
        assert worker.lost is not None, "it has died"
        event = PoolEvent(
            PoolEventKind.WORKER_DIED, "", time.time(), worker.lost.what, worker.lost, worker=worker.index
        )
        self._events.emit(event)
        if self._state == "open":
            self._hold_back()

    def _hold_back(self) -> None:
        """Spares that die or do not start are tried again after a while, a longer one each time; one that is used ends that.
        Those that do so meanwhile are of the same time: any number of them may have been started together."""
        if self._retry is not None:
            return
        delay = min(_FIRST_DELAY * 2**self._in_a_row, _LONGEST_DELAY)
        self._in_a_row = min(self._in_a_row + 1, 20)
        self._retry = asyncio.get_running_loop().call_later(delay, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._fill()

    def _emit(self, kind: PoolEventKind, member: Member, detail: str = "", error: BaseException | None = None) -> None:
        if kind is PoolEventKind.ACQUIRED:
            self._in_a_row = 0
        self._events.emit(PoolEvent(kind, member.name, time.time(), detail, error))

    # -- its end

    def _shut(self, state: str) -> None:
        if self._state == "closed":
            return
        self._state = state
        if self._retry is not None:
            self._retry.cancel()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(StateError(f"pool {self.name!r} is {state}: there is no guest any more"))
        for member in [*self._spares, *self._starting]:
            member.release()
        self._spares.clear()
        self._fill()  # which tells who waits for a change

    async def _end(self) -> None:
        tasks = [member.task for member in self._members]
        for member in tuple(self._members):
            member.release()
        if tasks:
            await asyncio.wait(tasks)
        if self._workers is not None:
            await self._workers.aclose()
        self._events.end()


def _guests_of(config: VMConfig) -> Callable[[str], AbstractAsyncContextManager[VM]]:
    @asynccontextmanager
    async def guest(name: str) -> AsyncIterator[VM]:
        async with VM(replace(config, name=name)) as vm:
            await vm.start()
            yield vm

    return guest
