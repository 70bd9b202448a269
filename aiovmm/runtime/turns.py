"""The turns that VMs have of the event loop: for exits, kicks, and what devices go on with.

Whatever a guest can ask for as often as it likes is a `Job` of its VM's account. A job that is ready runs at once while nobody
else waits, as nearly always, until such jobs have had UNCONTENDED seconds in a row. From then on all that are ready run in the
order of `fair`, for BUDGET seconds in each turn of the loop, which serves all else in between: sockets, timers, the embedder's
tasks, and new jobs. A coroutine that a job wakes ends that, and has the rest of the turn. So a turn of the loop has at most
UNCONTENDED seconds of all guests' and one job more, however many guests flood it; and one that asks for little waits for no more
than that, and for others that ask for little.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from time import perf_counter, thread_time
from weakref import WeakValueDictionary

from aiovmm.runtime.fair import Account, FairQueue

__all__ = ["ACCOUNT", "BUDGET", "UNCONTENDED", "Job", "Turns", "next_turn", "turns_of"]

BUDGET = 0.0001
"""Seconds of a turn of the loop that are for guests' jobs while some wait, and the rest of the last one. A guest's echo takes
four turns of the loop; one costs 15 us besides."""

UNCONTENDED = 0.0003
"""The same while nobody waits, in a row."""

_GAP = 0.0002  # seconds without a job, after which the loop has been elsewhere
_LONG = 0.0002  # seconds from which on a job is looked at more closely
_LONGEST = 0.001  # seconds that are charged for one turn
_ALONE = 0.0002  # seconds for which nobody else has had a job, after which an account is alone

_WAKES = 0.0001  # seconds that a coroutine is taken to have when it is woken

ACCOUNT: ContextVar[Account | None] = ContextVar("aiovmm_account", default=None)
"""Whose turns they are that a device's tasks take."""

_all: WeakValueDictionary[asyncio.AbstractEventLoop, Turns] = WeakValueDictionary()


class Job:
    """Something of an account's that is to be done whenever it is `ready`: `run()`, which bounds itself by `turns.until`."""

    __slots__ = ("__weakref__", "_context", "account", "closed", "due", "run", "turns")

    def __init__(self, run: Callable[[], None], account: Account | None = None) -> None:
        """Of the running loop, and of ACCOUNT if not of `account`. What runs sees the context variables of now."""
        self.account = account or ACCOUNT.get() or Account()
        self.run = run
        self.turns = turns_of(asyncio.get_running_loop())
        self.due = self.closed = False
        self._context: Context = copy_context()

    def ready(self) -> None:
        """It is to run, now or in its turn. Idempotent until then."""
        if not self.due and not self.closed:
            self.turns.serve(self)

    def again(self) -> None:
        """The same for who goes on: not in this turn of the loop."""
        if not self.due and not self.closed:
            self.turns.queue_later(self)

    def close(self) -> None:
        """It does not run any more, and keeps nothing. Idempotent."""
        self.closed = True
        self.run = _nothing

    def run_in_context(self) -> None:
        """As the loop calls a callback."""
        self._context.run(self.run)


class Turns:
    """Of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: FairQueue[Job] = FairQueue()
        self._only: Job | None = None  # that waits, if it is one; several are in `_waiting`
        self._later: list[Job] = []
        self._scheduled = False
        self._running = False
        self._processor = thread_time()  # of the loop's thread, when it was last asked for
        self._spent = 0.0  # since the loop was last known to be elsewhere
        self._ended = 0.0  # the last job
        self._woken: Account | None = None  # in this turn of the loop
        self._goes_on: Account | None = None  # the last whose coroutine went on
        self._latest: Account | None = None
        self._changed = 0.0  # when `_latest` did
        self.count = 0  # turns, while there is more to do than fits into one

    @property
    def contended(self) -> bool:
        """Whether anybody waits for a turn."""
        return self._only is not None or bool(self._waiting)

    def alone(self, account: Account) -> bool:
        """Whether nobody else has had a job lately, or waits for one: then to look out for more costs nobody anything."""
        return not self.contended and self._latest is account and self._ended - self._changed > _ALONE

    def serve(self, job: Job) -> None:
        """At once, if nobody waits and the turn has room; else in its turn."""
        if self._scheduled or self._running:
            self.queue(job)
            return
        now = perf_counter()
        if now - self._ended > _GAP:
            self._spent = 0.0
        if self._spent >= UNCONTENDED:
            self.queue(job)
            return
        self._waiting.begin(job.account)
        self._run(job.account, job.run, now)

    def goes_on(self, account: Account | None) -> bool:
        """Whether its coroutine may have the next turn of the loop: as long as no other account's goes on, and nobody waits."""
        if self._goes_on is account and account is not None:
            return not self.contended
        self._goes_on = account
        return False

    def woke(self, account: Account) -> None:
        """By the job that runs now, a coroutine of the account's: it has its turn when this one is over, and until then nobody
        else is woken; what it takes is charged after it."""
        if self._scheduled:
            self._woken = account
        self._spent += _WAKES

    def queue(self, job: Job) -> None:
        """For a later turn."""
        job.due = True
        if not self._scheduled:
            self._scheduled = True
            self._only = job
            self._loop.call_soon(self._turn)
            return
        if (only := self._only) is not None:
            self._only = None
            self._waiting.put(only.account, only)
        self._waiting.put(job.account, job)

    def queue_later(self, job: Job) -> None:
        """For a turn of the loop's after this one."""
        if self._scheduled:
            job.due = True
            self._later.append(job)
        else:
            self.queue(job)

    def _turn(self) -> None:
        self.count += 1
        self._spent = 0.0
        now = perf_counter()
        if self._woken is not None:  # it has had its turn since
            self._woken.charge(min(now - self._ended, _LONGEST))
            self._woken = None
        try:
            self._run_some(now)
        finally:  # a KeyboardInterrupt ends the loop's run, and perhaps not the program
            self._scheduled = bool(self._waiting)
            if self._scheduled:
                self._loop.call_soon(self._turn)
            if self._later:
                later, self._later = self._later, []
                for job in later:
                    self.queue(job)

    def _run_some(self, now: float) -> None:
        """What there is room for in a turn of the loop."""
        end = now + BUDGET
        if (only := self._only) is not None:  # it takes nothing from anybody: no order, and no system call
            self._only = None
            self._waiting.begin(only.account)
            now = self._run_due(only, now)
        else:
            self._processor = thread_time()
        while now < end and self._woken is None and (following := self._waiting.take()) is not None:
            now = self._run_due(following[1], now)

    def _run_due(self, job: Job, now: float) -> float:
        """Its turn has come: when it has ended."""
        job.due = False
        if job.closed:
            return now
        try:
            return self._run(job.account, job.run_in_context, now)
        except Exception as exc:
            self._loop.call_exception_handler({"message": "a guest's turn failed", "exception": exc})
            return perf_counter()

    def _worked(self, seconds: float) -> float:
        """Of so many the processor time, as far as that is known: the host's scheduler may have had others run meanwhile, which
        is no guest's doing. Nor does one job cost a guest its turns for long: who is slow rests (kvm/exitloop.py)."""
        before, self._processor = self._processor, thread_time()
        return min(seconds, self._processor - before, _LONGEST)

    def _run(self, account: Account, run: Callable[[], None], now: float) -> float:
        """When it has ended."""
        if account is not self._latest:
            self._latest, self._changed = account, now
        self._running = True
        try:
            run()
        finally:
            self._running = False
            self._ended = ended = perf_counter()
            self._spent += ended - now
            account.charge(ended - now if ended - now < _LONG else self._worked(ended - now))
        return ended


def _nothing() -> None:
    """What a job that is closed does."""


async def next_turn() -> None:
    """For a coroutine of a device's that goes on, and has had a turn: wait for the next."""
    if turns_of(asyncio.get_running_loop()).goes_on(ACCOUNT.get()):
        await asyncio.sleep(0)
        return
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    job = Job(_nothing)
    job.run = partial(_give, turn, job.turns, job.account)
    job.again()
    await turn


def _give(turn: asyncio.Future[None], turns: Turns, account: Account) -> None:
    if not turn.done():  # else it was cancelled
        turn.set_result(None)
        turns.woke(account)


def turns_of(loop: asyncio.AbstractEventLoop) -> Turns:
    """Those of the loop, as long as somebody keeps them."""
    turns = _all.get(loop)
    if turns is None:
        turns = _all[loop] = Turns(loop)
    return turns
