"""Limits of time that a stopped process does not miss, and that bind all others."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm import ExitReason, ExitStatus
from aiovmm.agent import Agent
from aiovmm.console.search import Trial
from aiovmm.console.trial import try_match
from aiovmm.errors import HostError, HotplugTimeout, PeerError
from aiovmm.machine.hotplug.waiting import wait_for_guest
from aiovmm.runtime.awake import Awake, awake_budget, awake_timeout, ends_within
from aiovmm.runtime.child import Child
from aiovmm.vhost_user.backend import Resume, VhostUserBackend
from aiovmm.vhost_user.channel import ChannelClosed
from aiovmm.vhost_user.connection import Connection
from aiovmm.vhost_user.frontend import Frontend, Timing
from aiovmm.vhost_user.protocol import ProtocolFeature
from aiovmm.vhost_user.retry import RetryPolicy
from tests.limits import HANGS


@given(st.floats(0.001, 1e5), st.lists(st.floats(0, 2), max_size=60))
def test_what_is_looked_at_in_time_ends_in_time(limit: float, late: list[float]) -> None:
    """Each look may be later than it was due, by as much as it was to wait."""
    now, awake, lates = 7.0, Awake(limit, 7.0, 0.0), iter(late)
    while (pause := awake.look_at(now, 0.0)) is not None:
        assert pause > 0
        now += pause * max(1.0, next(lates, 1.0))
    assert limit * (1 - 1e-9) <= now - 7.0 <= limit * 1.2 + 0.02


@given(st.floats(0.1, 1e5), st.floats(3, 1e6), st.integers(0, 19))
def test_a_time_in_which_nobody_looked_counts_as_one_look(limit: float, gap: float, before: int) -> None:
    now, awake = 0.0, Awake(limit, 0.0, 0.0)
    for _ in range(before):
        pause = awake.look_at(now, 0.0)
        assert pause is not None
        now += pause
    pause = awake.look_at(now, 0.0)
    assert pause is not None
    stopped = pause * gap
    now += stopped
    while (pause := awake.look_at(now, 0.0)) is not None:
        now += pause
    assert limit * 0.999 - 0.01 <= now - stopped * (1 - 1 / gap) <= limit * 1.06 + 0.02


@given(st.floats(0.1, 1e5), st.lists(st.floats(2.5, 100), min_size=1, max_size=60))
def test_a_loop_that_is_busy_all_the_time_misses_no_limit(limit: float, turns: list[float]) -> None:
    """Each look comes so many times too late; the thread had a processor all the time."""
    now, awake, lates = 0.0, Awake(limit, 0.0, 0.0), iter(turns)
    longest = 1.0
    while (pause := awake.look_at(now, now)) is not None:
        longest = next(lates, longest)
        now += (turn := pause * longest)
    assert limit * (1 - 1e-9) <= now <= limit + turn + 0.02


@given(st.floats(1, 7e4), st.floats(0, 0.9), st.floats(3, 1e3))
def test_of_a_loop_that_is_blocked_all_the_time_twenty_looks_are_not_counted(
    limit: float, ran: float, blocked: float
) -> None:
    """It does nothing there, or has a processor for some of it: that counts."""
    now, awake, looks = 0.0, Awake(limit, 0.0, 0.0), 0
    while awake.look_at(now, now * ran) is not None:
        now += limit / 20 * blocked
        looks += 1
    assert looks <= min(20, 20 / max(1.0, blocked * ran)) + 2


def test_what_computes_on_the_loop_is_counted() -> None:
    async def waits() -> None:
        loop = asyncio.get_running_loop()
        async with awake_timeout(0.1):
            while True:
                end = time.thread_time() + 0.06
                while time.thread_time() < end:
                    pass
                turns.append(loop.time())
                await asyncio.sleep(0)

    turns: list[float] = []
    with pytest.raises(TimeoutError):
        asyncio.run(waits())
    assert len(turns) <= 3, "of 0.06 s that it had a processor for: 20 if each counted as 0.005 s"


async def test_whether_something_ends_in_time() -> None:
    future = asyncio.get_running_loop().create_future()
    assert not await ends_within(0.01, future)
    assert not future.done()
    future.set_exception(KeyError("is not looked at"))
    assert await ends_within(60.0, future)
    assert isinstance(future.exception(), KeyError)


@pytest.mark.parametrize("seconds", [0, -1, 0.0001, 0.05])
async def test_it_is_a_timeout_as_any(seconds: float) -> None:
    with pytest.raises(TimeoutError):
        async with awake_timeout(seconds) as limit:
            await asyncio.Event().wait()
    assert limit.expired()


@pytest.mark.parametrize("seconds", [None, 1e9, float("inf")])
async def test_what_ends_before_it_is_left_alone(seconds: float | None) -> None:
    async with awake_timeout(seconds) as limit:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not limit.expired()


class StoppedLoop(asyncio.SelectorEventLoop):
    """Whose process is stopped for `away` seconds in all."""

    away = 0.0

    def time(self) -> float:
        return super().time() + self.away


def test_a_process_that_was_stopped_has_the_rest_of_its_time() -> None:
    async def waits(loop: StoppedLoop) -> None:
        async with awake_timeout(0.2):
            await asyncio.sleep(0)
            loop.away += 100.0
            await asyncio.Event().wait()

    loop = StoppedLoop()
    began = loop.time()
    try:
        with pytest.raises(TimeoutError):
            loop.run_until_complete(waits(loop))
        assert loop.time() - began - 100.0 >= 0.15
    finally:
        loop.close()


def run_stopped(work: Any) -> float:
    """Run `work(loop)` to its end; how long it took, but for the 100 s that it was stopped for."""
    loop = StoppedLoop()
    began = loop.time()
    try:
        loop.run_until_complete(work(loop))
        assert loop.away == 100.0
        return loop.time() - began - loop.away
    finally:
        loop.close()


def test_several_waits_share_a_budget_and_what_is_between_them_counts() -> None:
    async def waits(loop: StoppedLoop) -> None:
        with awake_budget(0.4) as left:
            await asyncio.sleep(0.1)
            loop.away += 100.0
            while left():  # noqa: ASYNC110 - it is asked
                await asyncio.sleep(0.001)
            assert left() == 0.0

    assert run_stopped(waits) >= 0.3


async def test_a_budget_without_an_end() -> None:
    with awake_budget(None) as left:
        assert left() is None


def test_a_guest_has_the_rest_of_its_time_too() -> None:
    async def waits(loop: StoppedLoop) -> None:
        ending = SimpleNamespace(stopped=asyncio.Event())
        loop.call_later(0.01, lambda: setattr(loop, "away", 100.0))
        with pytest.raises(HotplugTimeout, match=r"not taken within 0\.3 s"):
            await wait_for_guest(cast(Any, ending), loop.create_future(), 0.3, "adding", "not taken", "")

    assert run_stopped(waits) >= 0.2


def test_a_back_end_that_was_stopped_as_well_may_answer_later() -> None:
    async def waits(loop: StoppedLoop) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        loop.call_later(0.01, lambda: setattr(loop, "away", 100.0))
        with theirs, pytest.raises(PeerError, match=r"did not answer GET_FEATURES within 0\.3 s"):
            await Connection.open(
                ours, ProtocolFeature(0), on_lost=lambda *_: None, on_config_change=lambda: None, timeout=0.3
            )

    assert run_stopped(waits) >= 0.2


def test_a_back_end_that_is_yet_to_be_started_is_waited_for_as_long() -> None:
    async def waits(loop: StoppedLoop) -> None:
        loop.call_later(0.01, lambda: setattr(loop, "away", 100.0))
        with pytest.raises(HostError, match=r"waited for 0\.3 s"):
            await Frontend("/nowhere/at/all", ProtocolFeature(0), timing=Timing(connect=0.3)).open()

    assert run_stopped(waits) >= 0.2


def test_so_is_one_that_went_away_under_a_live_device() -> None:
    async def waits(loop: StoppedLoop) -> None:
        async def reopen() -> None:
            raise ChannelClosed("it is away")

        backend = cast(Any, VhostUserBackend.__new__(VhostUserBackend))
        backend._frontend, backend._live = SimpleNamespace(reopen=reopen), object()
        backend._resume, backend._told, backend._retry = Resume.IF_IDLE, False, RetryPolicy(0.4)
        backend._retry.lost(loop.time())
        loop.call_later(0.01, lambda: setattr(loop, "away", 100.0))
        with pytest.raises(PeerError, match=r"did not come back within 0\.4 s: it is away"):
            await backend._reach_again()
        assert backend._retry.left == 0

    assert run_stopped(waits) >= 0.3


def stopped_soon(loop: StoppedLoop) -> None:
    loop.call_later(0.01, lambda: setattr(loop, "away", 100.0))


def test_a_program_that_was_stopped_as_well_ends_by_itself() -> None:
    """A disk's daemon writes what it has in its caches, and was killed meanwhile."""

    async def waits(loop: StoppedLoop) -> None:
        child = Child(["sh", "-c", "sleep 0.3; exit 7"])
        stopped_soon(loop)
        await child.aclose_after(HANGS)
        assert await child.wait() == 7

    run_stopped(waits)


def test_a_pattern_that_was_tried_meanwhile_is_not_too_slow() -> None:
    async def waits(loop: StoppedLoop) -> None:
        stopped_soon(loop)
        trial = Trial(re.compile(b"login"), b"login", 0, anywhere=True)
        assert await try_match(trial)

    run_stopped(waits)


def test_a_guest_that_has_ended_meanwhile_is_known_to_have() -> None:
    """Else an error says that its agent alone may have gone."""

    async def waits(loop: StoppedLoop) -> None:
        stopped = asyncio.Event()
        status: list[ExitStatus] = []
        place = SimpleNamespace(
            name="a guest",
            hears_of_its_end=True,
            ended=stopped.wait,
            console_tail=lambda: b"",
            status=lambda: status[0] if status else None,
        )

        async def ends() -> None:
            await asyncio.sleep(0.01)
            for _ in range(20):  # of the loop's turns
                await asyncio.sleep(0)
            status.append(ExitStatus(ExitReason.KILLED))
            stopped.set()

        stopped_soon(loop)
        ending = loop.create_task(ends())
        assert "killed" in str(await Agent(cast(Any, place)).lost("asking"))
        await ending

    run_stopped(waits)
