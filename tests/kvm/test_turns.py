"""What a guest's exits take of the loop: a turn's budget, then the others have theirs. The clock is the test's, so that counts
are exact: each access that the device serves takes as long as it says."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

import pytest

from aiovmm.bus import Policy
from aiovmm.kvm import Kvm, dispatch, event_batch, exitloop
from aiovmm.kvm.exits import Stopped
from aiovmm.runtime import turns
from aiovmm.runtime.patience import LONGEST_DOZE
from tests.guests.machine import Access, Machine
from tests.limits import HANGS

pytestmark = pytest.mark.kvm


class Clock:
    """`perf_counter` of the exit loop and of turns, which stands still unless the device works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in (exitloop, dispatch, turns):
            monkeypatch.setattr(module, "perf_counter", lambda: self.now)


class Turns:
    """Counts turns of the event loop, each of which any other guest has its share of."""

    def __init__(self) -> None:
        self.count = 0
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self.count += 1
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def stop(self) -> None:
        self._handle.cancel()


def check(served: list[int]) -> None:
    """`served`: of each access, the turn of the loop. Four fill a VM's turn; every 10 ms its timer gives it a second one."""
    in_turn = Counter(served)
    assert max(in_turn.values()) <= 8
    assert sum(n > 4 for n in in_turn.values()) < len(in_turn) / 2


async def test_a_flood_of_exits_leaves_the_loop_a_turn_after_each_budget(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    async with Machine("ask", kvm=kvm) as m:
        loop, served = Turns(), []

        def answer(offset: int, size: int) -> bytes:
            served.append(loop.count)
            clock.now += exitloop.TURN / 3.9
            return bytes(size)

        m.device.answer = answer
        m.start()
        await m.until(lambda: len(served) > 400)
        loop.stop()
    check(served)


async def test_what_is_left_of_a_batch_comes_in_later_turns_whole_and_in_order(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_batch, "_BYTES", 1)  # each write for itself
    clock = Clock(monkeypatch)
    async with Machine("burst", kvm=kvm) as m:
        loop, served, values, ended = Turns(), [], bytearray(), []

        def write(offset: int, data: bytes) -> None:
            served.append(loop.count)
            values.extend(data)
            clock.now += exitloop.TURN / 3.9

        m.posted.on_write = write
        m.device.on_write = lambda offset, data: ended.append(data)
        m.start()
        await m.until(lambda: bool(ended))
        loop.stop()
    assert bytes(values) == bytes(n % 256 for n in range(4000))
    check(served)


async def test_who_was_over_by_far_rests_as_long_as_that_took(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    rests: list[float] = []
    end_turn = exitloop.ExitLoop._end_turn

    def noted(self: exitloop.ExitLoop, over: float) -> None:
        end_turn(self, over)
        if self._resting:
            rests.append(over)
            self._drain()
            assert self._resting, "nothing wakes it before"

    monkeypatch.setattr(exitloop.ExitLoop, "_end_turn", noted)
    async with Machine("ask", kvm=kvm) as m:
        served = 0

        def answer(offset: int, size: int) -> bytes:
            nonlocal served
            served += 1
            if served <= 20:
                clock.now += 0.005
            return bytes(size)

        m.device.answer = answer
        m.start()
        await m.until(lambda: served > 1000)
    assert rests == [pytest.approx(0.005 - exitloop.TURN)] * 20


class Watching:
    """The loop, and how often it has been told to forget a descriptor."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.forgot = 0

    def remove_reader(self, fd: int) -> bool:
        self.forgot += 1
        return self.loop.remove_reader(fd)

    def __getattr__(self, name: str) -> object:
        return getattr(self.loop, name)


async def test_who_rests_hears_of_one_call_and_is_not_taken_from_the_loop(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    calls = [0]  # in each rest
    called, go_on = exitloop.ExitLoop._called, exitloop.ExitLoop._go_on

    def counted(self: exitloop.ExitLoop) -> None:
        if self._resting:
            calls[-1] += 1
        called(self)

    def over(self: exitloop.ExitLoop) -> None:
        calls.append(0)
        go_on(self)

    monkeypatch.setattr(exitloop.ExitLoop, "_called", counted)
    monkeypatch.setattr(exitloop.ExitLoop, "_go_on", over)
    async with Machine("ask", kvm=kvm) as m:
        loop = Watching(asyncio.get_running_loop())
        m.loop._loop = loop  # type: ignore[assignment]

        def answer(offset: int, size: int) -> bytes:
            clock.now += 0.005
            return bytes(size)

        m.device.answer = answer
        m.start()
        await m.until(lambda: len(calls) > 20)
        assert loop.forgot == 0
    assert max(calls) == 1


async def test_a_guest_that_prints_on_and_on_is_looked_at_less_often(kvm: Kvm) -> None:
    async with Machine("flood", kvm=kvm) as m:
        m.fast.policy[0] = Policy.POSTED_WRITE | Policy.LAZY_WRITE
        m.start()
        await m.until(lambda: m.loop._dozes == LONGEST_DOZE)
        await m.cpu.pause()
        await m.until(lambda: m.loop._dozes == 1)
        m.cpu.resume()
        await m.until(lambda: m.loop._dozes == LONGEST_DOZE)


class Raced(list[object]):
    """Of the threads whose loops share it another has always just taken the last."""

    def __len__(self) -> int:
        return 1


async def test_loops_of_other_threads_may_take_the_last_room_for_exits(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_batch, "_spare", Raced())
    async with Machine("hello", kvm=kvm) as m:
        m.start()
        await m.until(lambda: m.written.startswith(b"A"))


def _has_served(log: list[Access]) -> bool:
    return len(log) > 100


async def test_where_no_memory_is_to_be_had_for_a_drain_the_guest_is_served_from_what_is_kept(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it: a flood of posted writes, reads that wait for an answer, a pause, and the end."""

    def none(_ctype: str, _count: int) -> object:
        raise MemoryError

    for guest in ("ask", "flood"):
        async with Machine(guest, kvm=kvm) as m:
            event_batch._spare.clear()
            with monkeypatch.context() as short:
                short.setattr(event_batch, "room", none)
                m.start()
                await m.until(partial(_has_served, m.log))
                await m.cpu.pause()
                await m.loop.served()
                m.cpu.resume()
                m.cpu.stop()
                assert await m.ended(timeout=HANGS) == Stopped()
            assert not m.errors
            assert [batch.is_reserve for batch in event_batch._reserve.batches] == [True]
            assert not event_batch._spare, "it was not used"


async def test_a_guest_whose_exits_are_lost_is_told_of_and_others_go_on(
    kvm: Kvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even for what tells of an exit is there memory: once."""
    async with Machine("ask", kvm=kvm) as fails, Machine("ask", kvm=kvm) as works:
        lost: list[Exception] = []
        fails.loop._on_failure = lost.append
        read = fails.loop._dispatch._read

        def fail(*_event: int) -> None:
            monkeypatch.setattr(fails.loop._dispatch, "_read", read)
            raise MemoryError

        monkeypatch.setattr(fails.loop._dispatch, "_read", fail)
        fails.start()
        await fails.until(lambda: bool(lost))
        works.start()
        await works.until(lambda: len(works.log) > 10)
        fails.cpu.stop()
        assert await fails.ended(timeout=HANGS) == Stopped()
        assert [type(error) for error in lost] == [MemoryError]
