"""Limits of a guest: each binds, can be changed while it runs, and is no neighbour's."""

from __future__ import annotations

import asyncio
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm import VM, ConfigError, EventKind, ExitReason, LimitsConfig, RebootPolicy, StateError, VMState
from aiovmm.machine.limits import IdleClock
from tests.limits import HANGS
from tests.vm.guest import config, counts_on, event, until


def exits(vm: VM) -> int:
    return sum(vcpu.exits for vcpu in vm.stats().vcpus)


async def rate(vm: VM, seconds: float = 1.0) -> float:
    """Exits a second."""
    began, before = time.perf_counter(), exits(vm)
    await asyncio.sleep(seconds)
    return (exits(vm) - before) / (time.perf_counter() - began)


@pytest.mark.kvm
@pytest.mark.parametrize(("does", "cpus"), [("n", 1), ("x", 1), ("w", 1), ("a2n", 2)])
async def test_exits_are_bound_within_a_tenth_and_a_neighbours_are_not(does: str, cpus: int) -> None:
    async with VM(config(does, cpus, limits=LimitsConfig(exits=1000))) as bound, VM(config("n")) as free:
        await asyncio.gather(bound.start(), free.start())
        await counts_on(bound)
        seen = exits(free)
        assert 1 <= await rate(bound) <= 1100
        await until(lambda: exits(free) - seen > 1100)


@pytest.mark.kvm
async def test_the_limit_of_exits_is_changed_while_it_runs_and_holds_over_resets() -> None:
    async with VM(config("n")) as vm:
        await vm.start()
        await counts_on(vm, 1000)
        vm.set_limits(exits=1)
        assert vm.limits == LimitsConfig(exits=1)
        seen = exits(vm)
        await asyncio.sleep(0.2)
        assert exits(vm) - seen <= 3
        await asyncio.wait_for(vm.pause(), HANGS)
        await vm.resume()
        vm.set_limits(exits=None)
        await counts_on(vm, 1000)
    async with VM(config("n", limits=LimitsConfig(exits=1))) as vm:
        await vm.start()
        await asyncio.wait_for(vm.kill(), HANGS)
    async with VM(config("r", on_reboot=RebootPolicy.RESTART, limits=LimitsConfig(exits=50))) as vm:
        await vm.start()
        await event(vm, EventKind.REBOOTED)
        assert vm.machine.parts.exits_limit == 50


@pytest.mark.kvm
async def test_a_life_ends_when_it_is_over_and_a_neighbours_goes_on() -> None:
    async with VM(config("s", limits=LimitsConfig(lifetime=0.5))) as vm, VM(config("s")) as other:
        began = time.monotonic()
        await asyncio.gather(vm.start(), other.start())
        status = await asyncio.wait_for(vm.wait(), HANGS)
        assert time.monotonic() - began >= 0.5
        assert status.reason is ExitReason.LIFETIME
        assert not status.ok
        assert status.detail == "it has lived for the 0.5 s that it may"
        last = [seen async for seen in vm.events(from_start=True)][-1]
        assert (last.kind, last.status) == (EventKind.STOPPED, status)
        await counts_on(other)


@pytest.mark.kvm
@pytest.mark.parametrize("does", ["s", "r", "w"])
async def test_a_life_ends_whatever_it_is_at(does: str) -> None:
    """Also one that does nothing but reset itself, and one that is paused."""
    async with VM(config(does, on_reboot=RebootPolicy.RESTART, limits=LimitsConfig(lifetime=0.3))) as vm:
        await vm.start()
        if does == "s":
            await vm.pause()
        assert (await asyncio.wait_for(vm.wait(), HANGS)).reason is ExitReason.LIFETIME


@pytest.mark.kvm
async def test_a_life_is_made_longer_and_shorter_while_it_runs() -> None:
    async with VM(config("s", limits=LimitsConfig(lifetime=1.0))) as vm:
        await vm.start()
        vm.set_limits(lifetime=None)
        await asyncio.sleep(1.2)
        assert vm.status is None
        vm._ending.power.began -= 1000.0  # so much longer ago
        vm.set_limits(lifetime=500.0)
        assert (await asyncio.wait_for(vm.wait(), HANGS)).reason is ExitReason.LIFETIME
        with pytest.raises(StateError, match="has ended"):
            vm.set_limits(lifetime=5.0)


@pytest.mark.kvm
async def test_who_does_nothing_ends_and_who_computes_or_talks_does_not() -> None:
    idle = LimitsConfig(idle=2.0)  # on a busy machine, too, who computes has a processor now and then
    async with (
        VM(config("i", limits=idle)) as halts,
        VM(config("s", limits=idle)) as computes,
        VM(config("l", limits=idle)) as talks,
    ):
        await asyncio.gather(*(vm.start() for vm in (halts, computes, talks)))

        async def talk() -> None:
            while True:
                talks.serial.write(b"a")
                await talks.serial.read(1)
                await asyncio.sleep(0.02)

        talking = asyncio.create_task(talk())
        status = await asyncio.wait_for(halts.wait(), HANGS)
        assert status.reason is ExitReason.IDLE
        assert status.detail == "it has done nothing for 2 s"
        await counts_on(computes)
        assert computes.status is None
        assert talks.status is None
        talking.cancel()
        assert (await asyncio.wait_for(talks.wait(), HANGS)).reason is ExitReason.IDLE


@pytest.mark.kvm
async def test_nor_is_a_standstill_for_a_snapshot() -> None:
    async with VM(config("i", limits=LimitsConfig(idle=0.3))) as vm:
        await vm.start()
        async with vm._transition:
            await asyncio.sleep(1)
            assert vm.state is VMState.RUNNING
        assert (await vm.wait()).reason is ExitReason.IDLE


async def test_a_pause_is_no_idleness() -> None:
    async with VM(config("s", limits=LimitsConfig(idle=0.3))) as vm:
        await vm.start()
        await vm.pause()
        await asyncio.sleep(0.6)
        assert vm.status is None
        await vm.resume()
        await counts_on(vm)
        assert vm.status is None


@given(st.floats(0.1, 1e6), st.lists(st.booleans(), max_size=60))
def test_idleness_ends_after_its_limit_and_a_twentieth_at_most(limit: float, busy: list[bool]) -> None:
    """Looked at when it asks for it; `busy` says whether it has done something before each look."""
    now = last = 0.0
    done, clock = 0, IdleClock(limit, 0.0, 0.0, 0, 0.0)
    wait: float | None = limit / 20
    looks = iter(busy)
    while wait is not None:
        now += wait
        if next(looks, False):
            done, last = done + 1, now
        wait = clock.look(now, 0.0, done, 0.0)
        assert wait is None or wait > 0
    assert limit * 0.999 <= now - last <= limit * 1.05 + 0.01


@pytest.mark.parametrize(
    ("worked", "idle"), [((0.0, 0.04), True), ((0.0, 0.06), False), ((5.0, 0.0), False), ((5.0, 5.01), True)]
)
def test_what_counts_as_work(worked: tuple[float, float], idle: bool) -> None:
    """A twentieth of a processor; less than before is another power-on."""
    clock, (first, last) = IdleClock(1.0, 0.0, 0.0, 0, worked[0]), worked
    looks = [clock.look(n / 20, 0.0, 0, first + (last - first) * n / 20) for n in range(1, 21)]
    assert (looks[-1] is None) is idle


@given(st.floats(1.0, 1e6), st.integers(0, 18))
def test_time_in_which_nobody_looked_is_no_idleness(gap: float, before: int) -> None:
    """The process was stopped: of what it has not seen a guest is not said to have done nothing."""
    now, clock = 0.0, IdleClock(1.0, 0.0, 0.0, 0, 0.0)
    for _ in range(before):
        now += 0.05
        assert clock.look(now, 0.0, 0, 0.0) is not None
    now += gap
    assert clock.look(now, 0.0, 0, 0.0) is not None
    looks = 0
    while (wait := clock.look(now := now + 0.05, 0.0, 0, 0.0)) is not None:
        looks += 1
        assert wait > 0
    assert 18 - before <= looks + 1 <= 20 - before


def test_idleness_that_a_busy_loop_saw_late_is_idleness() -> None:
    """The loop's thread had a processor all the time, and so could the guest."""
    clock = IdleClock(1.0, 0.0, 0.0, 0, 0.0)
    looks = [clock.look(n / 2, n / 2, 0, 0.0) for n in range(1, 3)]
    assert [left is None for left in looks] == [False, True]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"exits": 0}, "limits.exits"),
        ({"exits": 10**9}, "limits.exits"),
        ({"lifetime": 0}, "limits.lifetime"),
        ({"lifetime": math.nan}, "limits.lifetime"),
        ({"idle": -1}, "limits.idle"),
        ({"idle": math.inf}, "limits.idle"),
    ],
)
def test_what_is_no_limit_is_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LimitsConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.kvm
async def test_an_unknown_limit_is_named() -> None:
    async with VM(config("i")) as vm:
        with pytest.raises(ConfigError, match="there is no such limit"):
            vm.set_limits(memory=1)
        await until(lambda: vm.limits == LimitsConfig())


def test_as_text() -> None:
    assert config("i", limits="exits=500,lifetime=90,idle=1.5").limits == LimitsConfig(
        exits=500, lifetime=90.0, idle=1.5
    )
    with pytest.raises(ConfigError, match="no number of seconds"):
        config("i", limits="lifetime=soon")
