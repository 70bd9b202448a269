"""Turns of the event loop: who has the next, how much a turn of the loop has of them, and that none is forgotten."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.runtime import turns
from aiovmm.runtime.fair import GRACE, Account, FairQueue
from aiovmm.runtime.turns import ACCOUNT, BUDGET, UNCONTENDED, Job, next_turn, turns_of
from tests.limits import HANGS

COST = st.floats(1e-6, 2e-3)


class Floods:
    """Accounts that always want more, each of whose jobs costs so much."""

    def __init__(self, costs: list[float]) -> None:
        self.queue: FairQueue[int] = FairQueue()
        self.accounts = [Account() for _ in costs]
        self.costs = costs
        for number in range(len(costs)):
            self.queue.put(self.accounts[number], number)

    def run(self) -> int:
        """One job; whose."""
        taken = self.queue.take()
        assert taken is not None
        account, number = taken
        if number >= 0:
            account.charge(self.costs[number])
            self.queue.put(account, number)
        return number


@given(st.lists(COST, min_size=1, max_size=20))
def test_all_that_always_want_more_have_the_same(costs: list[float]) -> None:
    """To a job of the dearest, whatever their jobs cost."""
    floods = Floods(costs)
    for _ in range(400):
        floods.run()
        had = [account.seconds for account in floods.accounts]
        assert max(had) - min(had) <= max(costs) + 1e-9


@given(st.lists(COST, min_size=1, max_size=20), st.integers(1, 200))
def test_who_was_idle_comes_before_all_of_them(costs: list[float], before: int) -> None:
    floods, idle = Floods(costs), Account()
    for _ in range(len(costs) + before):  # each has had something
        floods.run()
    floods.queue.put(idle, -1)
    assert floods.run() == -1


@given(st.integers(1, 500))
def test_and_saves_up_no_more_than_its_grace(before: int) -> None:
    """However long it was idle."""
    cost = 1e-4
    floods, idle = Floods([cost] * 4), Account()
    for _ in range(before):
        floods.run()
    had = idle_had = 0
    floods.queue.put(idle, -1)
    while had < 50:
        if floods.run() == -1:
            idle_had += 1
            idle.charge(cost)
            floods.queue.put(idle, -1)
        else:
            had += 1
    assert idle_had <= GRACE / cost + 50 / 4 + 2


@given(st.lists(st.tuples(st.integers(0, 4), COST), max_size=100))
def test_no_job_is_lost_and_of_one_account_they_come_in_order(jobs: list[tuple[int, float]]) -> None:
    queue: FairQueue[int] = FairQueue()
    accounts = [Account() for _ in range(5)]
    for number, (who, _) in enumerate(jobs):
        queue.put(accounts[who], number)
    came: list[int] = []
    while (taken := queue.take()) is not None:
        account, number = taken
        account.charge(jobs[number][1])
        came.append(number)
    assert sorted(came) == list(range(len(jobs)))
    for who in range(5):
        own = [number for number in came if jobs[number][0] == who]
        assert own == sorted(own)


class Clock:
    """`perf_counter` of turns, which the jobs wind on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for name in ("perf_counter", "thread_time"):
            monkeypatch.setattr(turns, name, lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Flood:
    """Jobs, each of an account of its own, that are ready again when they have run; how many ran in each turn of the loop."""

    def __init__(self, clock: Clock, count: int, cost: float) -> None:
        self.clock, self.cost = clock, cost
        self.turn = 0
        self.ran: Counter[int] = Counter()
        self.jobs = [Job(self._run(number), Account()) for number in range(count)]

    def _run(self, number: int) -> Callable[[], None]:
        def run() -> None:
            self.ran[self.turn] += 1
            self.clock.now += self.cost
            asyncio.get_running_loop().call_soon(self.jobs[number].ready)

        return run

    async def turns(self, count: int) -> None:
        """Of the loop."""
        for _ in range(count):
            self.turn += 1
            await asyncio.sleep(0)


@pytest.mark.parametrize("cost", [1e-6, 2e-5, 5e-4])
async def test_a_turn_of_the_loop_has_no_more_of_them_than_its_budget_and_one_job(clock: Clock, cost: float) -> None:
    flood = Flood(clock, 1000, cost)
    for job in flood.jobs:
        job.ready()
    await flood.turns(200)
    assert max(flood.ran.values()) * cost <= UNCONTENDED + BUDGET + 2 * cost
    later = [ran for turn, ran in flood.ran.items() if turn > 10]
    assert max(later) * cost <= BUDGET + cost + 1e-9, "once they wait"


async def test_in_a_flood_who_was_idle_is_served_in_the_next_turn(clock: Clock) -> None:
    flood = Flood(clock, 100, 2e-5)
    for job in flood.jobs:
        job.ready()
    await flood.turns(100)
    when: list[int] = []
    asked = Job(lambda: when.append(flood.turn), Account())
    for _ in range(10):
        asked.ready()
        before = flood.turn
        await flood.turns(3)
        assert when.pop() <= before + 2
        assert not when


async def test_alone_it_runs_at_once(clock: Clock) -> None:
    ran: list[int] = []
    Job(lambda: ran.append(1), Account()).ready()
    assert ran


async def test_who_goes_on_does_so_in_another_turn_of_the_loop() -> None:
    seen: list[int] = []
    turn = 0

    def run() -> None:
        seen.append(turn)
        if len(seen) < 20:
            job.again()

    job = Job(run, Account())
    job.ready()
    while len(seen) < 20:
        turn += 1
        await asyncio.sleep(0)
    assert len(set(seen)) == 20


async def test_coroutines_that_go_on_have_one_turn_in_each_of_the_loop(clock: Clock) -> None:
    """And each has as many as the others."""
    had: Counter[int] = Counter()
    ran: Counter[int] = Counter()
    turn = 0

    async def device(number: int) -> None:
        ACCOUNT.set(Account())
        while True:
            await next_turn()
            had[number] += 1
            ran[turn] += 1
            clock.now += 3e-4

    tasks = [asyncio.create_task(device(number)) for number in range(30)]
    for _ in range(600):
        turn += 1
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert max(ran.values()) == 1
    assert max(had.values()) - min(had.values()) <= 2


async def test_a_cancelled_wait_costs_nobody_his_turn() -> None:
    waits = [asyncio.create_task(next_turn()) for _ in range(20)]
    await asyncio.sleep(0)
    for wait in waits[::2]:
        wait.cancel()
    await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), HANGS)
    assert [wait.cancelled() for wait in waits] == [True, False] * 10


async def test_a_job_that_was_long_because_others_ran_costs_its_guest_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host's scheduler took the processor away from the loop for 50 ms."""
    wall = work = 100.0
    monkeypatch.setattr(turns, "perf_counter", lambda: wall)
    monkeypatch.setattr(turns, "thread_time", lambda: work)

    def run() -> None:
        nonlocal wall, work
        wall += 0.05
        work += 1e-5

    jobs = [Job(run, Account()), Job(run, Account())]
    for job in jobs:
        job.again()
    for _ in range(4):
        await asyncio.sleep(0)
    assert [job.account.seconds for job in jobs] == [pytest.approx(1e-5)] * 2


async def test_jobs_of_one_account_come_in_order_also_after_one_that_was_alone() -> None:
    account, ran = Account(), list[int]()
    for number in range(3):
        Job(partial(ran.append, number), account).again()
    assert turns_of(asyncio.get_running_loop()).contended
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert ran == [0, 1, 2]


async def test_a_job_that_fails_is_told_and_ends_no_other(clock: Clock) -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def fail() -> None:
        raise ValueError("its own")

    ran: list[int] = []
    Job(fail, Account()).again()
    Job(lambda: ran.append(1), Account()).again()
    for _ in range(5):
        await asyncio.sleep(0)
    assert ran
    assert [str(context["exception"]) for context in told] == ["its own"]


def test_an_interrupted_turn_is_not_the_last() -> None:
    """The program's own loop goes on after a Ctrl-C, to close its guests."""
    loop = asyncio.new_event_loop()

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def begin(*calls: Callable[[], None]) -> None:
        for call in calls:
            Job(call, Account()).again()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    ran: list[int] = []
    kept = turns_of(loop)
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(begin(interrupt, lambda: ran.append(1)))
    loop.run_until_complete(begin(lambda: ran.append(2)))
    assert sorted(ran) == [1, 2]
    assert not kept.contended
    loop.close()


async def test_a_closed_job_does_not_run_and_keeps_nothing() -> None:
    class Owner:
        def run(self) -> None:
            raise AssertionError("it was closed")

    owner = Owner()
    job, gone = Job(owner.run, Account()), weakref.ref(owner)
    job.again()
    job.close()
    job.ready()
    del owner
    gc.collect()
    assert gone() is None
    for _ in range(3):
        await asyncio.sleep(0)


async def test_turns_are_the_loops_and_go_with_those_who_have_jobs() -> None:
    loop = asyncio.get_running_loop()
    job = Job(lambda: None, Account())
    assert job.turns is turns_of(loop)
    gone = weakref.ref(job.turns)
    del job
    gc.collect()
    assert gone() is None
