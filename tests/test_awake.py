"""Limits of time that a stopped process does not miss, and that bind all others."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.runtime.awake import Awake, awake_timeout


@given(st.floats(0.001, 1e5), st.lists(st.floats(0, 2), max_size=60))
def test_what_is_looked_at_in_time_ends_in_time(limit: float, late: list[float]) -> None:
    """Each look may be later than it was due, by as much as it was to wait."""
    now, awake, lates = 7.0, Awake(limit, 7.0), iter(late)
    while (pause := awake.look(now)) is not None:
        assert pause > 0
        now += pause * max(1.0, next(lates, 1.0))
    assert limit * (1 - 1e-9) <= now - 7.0 <= limit * 1.2 + 0.02


@given(st.floats(0.1, 1e5), st.floats(3, 1e6), st.integers(0, 19))
def test_a_time_in_which_nobody_looked_counts_as_one_look(limit: float, gap: float, before: int) -> None:
    now, awake = 0.0, Awake(limit, 0.0)
    for _ in range(before):
        pause = awake.look(now)
        assert pause is not None
        now += pause
    pause = awake.look(now)
    assert pause is not None
    stopped = pause * gap
    now += stopped
    while (pause := awake.look(now)) is not None:
        now += pause
    assert limit * 0.999 - 0.01 <= now - stopped * (1 - 1 / gap) <= limit * 1.06 + 0.02


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
