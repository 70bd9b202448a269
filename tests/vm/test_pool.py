"""A pool: who gets which guest, how many there are, what becomes of the dead, and that nothing stays."""

from __future__ import annotations

import asyncio
import gc
import itertools
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiovmm import VM, DiskConfig, ExitReason, Pool, PoolEventKind, VMConfig, VMState
from aiovmm.errors import HostError, ImageError, StateError, UsageError
from tests.limits import HANGS
from tests.vm.guest import config, until
from tests.vm.remains import Remains

KIND = PoolEventKind
ROOT = Path(__file__).parent.parent.parent


here_and_there = pytest.mark.parametrize("workers", [0, 2], ids=["in this process", "in workers"])
"""The same of guests in this process and in two others."""


def guests(does: str = "l") -> VMConfig:
    return config(does, name="g")


async def lives(vm: VM) -> None:
    """Wait until the guest has answered: it runs, and can be reached."""
    word = b"%d;" % next(_words)
    vm.serial.write(word)
    await vm.serial.expect(re.escape(word), 20)


_words = itertools.count(1000)


class Gate:
    """A source of guests that come when the test says so."""

    def __init__(self, does: str = "l") -> None:
        self.config = guests(does)
        self.gate = asyncio.Semaphore(0)
        self.entered = 0
        self.at_once = 0
        self.most = 0
        self.fails: BaseException | None = None

    @asynccontextmanager
    async def __call__(self, name: str) -> AsyncIterator[VM]:
        self.entered += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.gate.acquire()
            if self.fails is not None:
                raise self.fails
        finally:
            self.at_once -= 1
        async with VM(replace(self.config, name=name)) as vm:
            await vm.start()
            yield vm


@here_and_there
async def test_each_user_has_a_guest_of_its_own_that_is_gone_afterwards(workers: int) -> None:
    remains = await Remains.once_loop_has_streams()
    async with Pool(guests(), workers=workers, warm=2, max=5) as pool:
        await pool.warmed(20)
        seen = []
        for _ in range(5):
            async with pool.acquire() as one, pool.acquire() as other:
                assert one is not other
                await lives(one)
                await lives(other)
                seen += [one, other]
            assert one.state is other.state is VMState.STOPPED
        assert len({vm.name for vm in seen}) == 10
        assert pool.stats().in_use == 0
    await remains.check()


@here_and_there
async def test_spares_are_ready_before_they_are_wanted(workers: int) -> None:
    async with Pool(guests(), workers=workers, warm=3, max=10) as pool:
        await pool.warmed(20)
        assert (pool.stats().warm, pool.stats().made) == (3, 3)
        async with pool.acquire() as vm:
            assert vm.name in {"g-0", "g-1", "g-2"}
            await until(lambda: pool.stats().warm == 3)
            assert pool.stats().made == 4


@here_and_there
async def test_ready_is_awaited(workers: int) -> None:
    async def answered(vm: VM) -> None:
        await vm.serial.expect(rb"hello\n")

    async with Pool(guests("hx"), workers=workers, max=3, ready=answered) as pool, pool.acquire() as vm:
        assert b"hello\n" in vm.serial.history


@here_and_there
async def test_never_more_than_there_may_be_and_first_come_first_served(workers: int) -> None:
    order: list[int] = []
    async with Pool(guests(), workers=workers, max=3) as pool:

        async def use(i: int) -> None:
            async with pool.acquire() as vm:
                order.append(i)
                stats = pool.stats()
                assert stats.in_use <= 3
                assert stats.starting + stats.warm + stats.in_use + stats.leaving <= 3
                await lives(vm)

        await asyncio.gather(*(use(i) for i in range(12)))
    assert order == list(range(12))


async def test_so_many_are_started_at_once() -> None:
    source = Gate()
    async with Pool(source, warm=6, max=10, starting=2) as pool:
        for n in range(2, 7):
            await until(lambda n=n: source.entered == n)  # type: ignore[misc]
            source.gate.release()
        source.gate.release()
        await pool.warmed(20)
    assert source.most == 2


@here_and_there
async def test_a_spare_that_dies_is_replaced(workers: int) -> None:
    async with Pool(guests(), workers=workers, warm=2, max=5) as pool:
        await pool.warmed(20)
        events = pool.events()
        async with pool.acquire() as vm:
            await vm.kill()  # which is its user's affair
        spares = [member.vm for member in pool._spares]
        assert spares[0] is not None
        await spares[0].kill()
        async for event in events:
            if event.kind is KIND.DIED:
                assert event.vm == spares[0].name
                assert event.detail == "killed: by the program"
                break
        await pool.warmed(20)
        assert pool.stats().died == 1
        async with pool.acquire() as vm:
            await lives(vm)


@here_and_there
async def test_guests_that_all_die_are_made_ever_more_slowly(workers: int) -> None:
    async with Pool(guests("o"), workers=workers, warm=4, max=20) as pool:  # which power themselves off
        await until(lambda: pool._in_a_row >= 4)
        assert pool.stats().died >= 4
        assert pool._retry is not None
        made = pool.stats().made
        await until(lambda: pool.stats().made > made)


async def test_spares_that_fail_together_are_tried_again_as_soon_as_one_that_does() -> None:
    source = Gate()
    source.fails = ImageError("kernel", "is broken")
    async with Pool(source, warm=8, starting=8) as pool:
        await until(lambda: source.entered == 8)
        for _ in range(8):
            source.gate.release()
        await until(lambda: pool.stats().failed == 8)
        assert pool._in_a_row <= 2, "one time, or two on a machine that is very busy"


async def test_a_start_that_is_cancelled_from_within_is_a_failure_like_any_other() -> None:
    async def ready(vm: VM) -> None:
        (never := asyncio.get_running_loop().create_future()).cancel()
        await never

    async with Pool(guests(), max=2, ready=ready) as pool:
        with pytest.raises(StateError, match="was cancelled"):
            async with pool.acquire(timeout=HANGS):
                pass
        assert pool.stats().failed == 1
        assert pool._retry is not None


async def test_one_that_is_given_back_after_its_end_is_no_spare() -> None:
    async with Pool(guests(), warm=1, max=1) as pool:
        member = await pool._take(HANGS)
        assert member.vm is not None
        await member.vm.kill()  # while it was on its way to who waited
        pool._used.pop(member)
        pool._give_back(member)  # who was cancelled in that instant
        assert not pool._spares
        await pool.warmed(HANGS)
        assert member not in pool._spares


async def test_who_waits_hears_why_there_is_none_and_others_go_on() -> None:
    source = Gate()
    source.fails = ImageError("kernel", "is broken")
    async with Pool(source, max=2) as pool:
        source.gate.release()
        with pytest.raises(ImageError, match="is broken"):
            async with pool.acquire():
                pass
        assert pool.stats().failed == 1
        source.fails = None
        source.gate.release()
        async with pool.acquire(timeout=HANGS) as vm:
            await lives(vm)


@here_and_there
async def test_nothing_stays_of_guests_that_could_not_be_started(workers: int) -> None:
    """However many, and though somebody has not read of it yet."""
    broken = replace(guests(), disks=(DiskConfig(path=Path("/nowhere")),))
    async with Pool(broken, max=2, workers=workers) as pool:
        events = pool.events()
        for _ in range(20):
            with pytest.raises(HostError, match="/nowhere"):
                async with pool.acquire():
                    pass
        failed = [await anext(events) for _ in range(20)]
        assert sum(event.error is not None for event in failed) > 5
        gc.collect()
        assert sum(isinstance(one, VM) for one in gc.get_objects()) < 5


async def test_a_time_out_and_a_cancelled_wait_take_nothing_with_them() -> None:
    remains = Remains.now()
    source = Gate()
    async with Pool(source, max=1) as pool:
        with pytest.raises(TimeoutError, match="a guest of pool"):
            async with pool.acquire(timeout=0.01):
                pass
        waiting = asyncio.create_task(_use(pool))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert pool.stats().waiting == 0
        source.gate.release()  # the one that was begun for them: nobody wants it
        await until(lambda: pool.stats().made == 1 and not pool._members)
        source.gate.release()
        async with pool.acquire(timeout=HANGS) as vm:
            await lives(vm)
    await remains.check()


async def _use(pool: Pool) -> None:
    async with pool.acquire() as vm:
        await lives(vm)


@here_and_there
async def test_a_guest_that_comes_in_the_instant_of_a_cancellation_goes_to_the_next(workers: int) -> None:
    async with Pool(guests(), workers=workers, max=1) as pool:
        async with pool.acquire():
            first, second = (asyncio.create_task(_use(pool)) for _ in range(2))
            await until(lambda: pool.stats().waiting == 2)
        await until(lambda: pool.stats().waiting == 1)
        first.cancel()
        await asyncio.wait_for(second, HANGS)
        assert first.cancelled() or first.done()


@here_and_there
@pytest.mark.parametrize("when", ["starting", "warm", "in use", "before it has begun"])
async def test_leaving_the_pool_ends_all_guests(when: str, workers: int) -> None:
    remains = await Remains.once_loop_has_streams()
    source: Gate | VMConfig = Gate() if when == "starting" and not workers else guests()
    vm = None
    async with Pool(source, warm=3, max=5, workers=workers) as pool:
        if when == "warm":
            await pool.warmed(20)
        elif when == "in use":
            member = await pool._take(20)
            vm = member.vm
        elif isinstance(source, Gate):
            await until(lambda: source.entered == 3)
        elif when == "starting":
            await asyncio.sleep(0)
    assert vm is None or (vm.status is not None and vm.status.reason is ExitReason.KILLED)
    assert pool.stats().made == 3 or when == "in use"
    with pytest.raises(StateError, match="is closed"):
        await pool._take(1)
    await remains.check()


async def test_a_start_that_is_given_up_is_cleaned_up_after_in_peace() -> None:
    """Whoever drains the pool, ends it, or both."""
    begun, cleaned_up = asyncio.Event(), []

    @asynccontextmanager
    async def source(name: str) -> AsyncIterator[VM]:
        begun.set()
        try:
            await asyncio.Event().wait()
            yield VM(guests())
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned_up.append(name)

    async with Pool(source, warm=1, name="p") as pool:
        await begun.wait()
        with pytest.raises(TimeoutError):
            await pool.drain(0)
    assert cleaned_up == ["p-0"]


@here_and_there
async def test_draining_lets_users_finish_and_gives_nobody_another(workers: int) -> None:
    async with Pool(guests(), workers=workers, warm=1, max=1) as pool:
        using = asyncio.Event()
        done = asyncio.Event()

        async def use() -> None:
            async with pool.acquire() as vm:
                using.set()
                await done.wait()
                await lives(vm)

        user = asyncio.create_task(use())
        await using.wait()
        waiting = asyncio.create_task(_use(pool))
        await until(lambda: pool.stats().waiting == 1)
        draining = asyncio.create_task(pool.drain())
        with pytest.raises(StateError, match="being drained"):
            await waiting
        assert not draining.done()
        done.set()
        await user
        await asyncio.wait_for(draining, HANGS)
        with pytest.raises(StateError, match="being drained"):
            await _use(pool)


@here_and_there
async def test_who_drains_a_pool_of_which_he_has_a_guest_hears_that_he_would_wait_for_himself(workers: int) -> None:
    async with Pool(guests(), workers=workers, max=2) as pool:
        async with pool.acquire() as vm:
            with pytest.raises(StateError, match=f"this task has taken {vm.name}"):
                async with asyncio.timeout(HANGS):  # wait_for makes a task of it, of Python 3.11
                    await pool.drain()
            await lives(vm)
            async with pool.acquire():  # nothing was changed
                pass
            with pytest.raises(TimeoutError, match="the users of pool 'g'"):
                await asyncio.create_task(pool.drain(timeout=0.1))
        await asyncio.wait_for(pool.drain(), HANGS)


@here_and_there
async def test_events_tell_a_guests_life_and_end_with_the_pool(workers: int) -> None:
    async with Pool(guests(), workers=workers, max=1) as pool:
        events = pool.events()
        await _use(pool)
    told = [(event.kind, event.vm) async for event in events if event.worker is None]
    assert told == [(kind, "g-0") for kind in (KIND.READY, KIND.ACQUIRED, KIND.RELEASED, KIND.GONE)]


_WRONG: list[dict[str, Any]] = [
    *({"warm": -1}, {"warm": 3, "max": 2}, {"max": 0}, {"starting": 0}, {"workers": -1}),
    *({"warm": "2"}, {"warm": 1.5}, {"warm": True}, {"max": None}, {"starting": "x"}, {"workers": None}),
    *({"ready": 5}, {"name": 5}, {"source": 5}, {"source": None}),
]


@pytest.mark.parametrize("wrong", _WRONG, ids=repr)
def test_what_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Pool(**{"source": guests(), **wrong})


@here_and_there
async def test_an_error_of_the_user_ends_its_guest_alone(workers: int) -> None:
    async def fails(use: Callable[[VM], Awaitable[None]]) -> None:
        async with pool.acquire() as vm:
            await use(vm)

    async def boom(vm: VM) -> None:
        raise ValueError(vm.name)

    async with Pool(guests(), workers=workers, warm=1, max=3) as pool, pool.acquire() as other:
        with pytest.raises(ValueError, match="g-"):
            await fails(boom)
        await lives(other)


def test_the_example_uses_a_hundred() -> None:
    kernel = config("hx").payload
    command = [sys.executable, "-m", "examples.pool", str(kernel.kernel), "--cmdline", "hx", "--memory", "4M"]
    done = subprocess.run(
        [*command, "--at-once", "10", "--until", "hello\n"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("100 guests in "), done.stderr
    assert done.returncode == 0
    assert "100 done, 0 wait for a guest" in done.stderr
