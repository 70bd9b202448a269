"""A guest that resets itself without end waits for what its resets cost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.machine import Machine, power
from aiovmm.machine.power import SHORTEST_LIFE, Power, pause_before_life
from aiovmm.runtime.event import Event

seconds = st.floats(0, 1000)


@given(alive=seconds, cost=seconds)
def test_resets_take_a_quarter_of_the_time_at_most(alive: float, cost: float) -> None:
    life = alive + max(0.0, pause_before_life(alive, cost))
    assert cost <= (life + cost) / 4 + 1e-6
    assert life >= SHORTEST_LIFE - 1e-9


def test_who_has_lived_long_runs_again_at_once() -> None:
    assert pause_before_life(3600.0, 10.0) < 0


def fail(_task: str, error: BaseException) -> None:
    raise error


class Costly:
    """A machine that takes its time, and that of a processor."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.processors = self

    async def aclose(self) -> None:
        self._clock.passes(0.5)

    async def start(self, *, paused: bool) -> None:
        return


class Clock:
    def __init__(self, work: float) -> None:
        self.now, self.spent, self.work = 1000.0, 10.0, work

    def passes(self, seconds: float) -> None:
        """Of which this process computes for a part of `work`."""
        self.now += seconds
        self.spent += seconds * self.work


@pytest.mark.parametrize("work", [1.0, 2.0, 0.0625])
async def test_what_taking_apart_and_building_cost_is_waited_for(work: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what they waited for, as for a disk that does not answer; nor more than it took, though neighbours compute, too."""
    clock, pauses = Clock(work), []
    monkeypatch.setattr(power, "_now", lambda: clock.now)
    monkeypatch.setattr(power, "time", SimpleNamespace(process_time=lambda: clock.spent))

    def pause(alive: float, cost: float) -> float:
        pauses.append((alive, cost))
        return -1.0

    async def build(*_how: Any) -> Costly:
        clock.passes(0.25)
        return Costly(clock)

    monkeypatch.setattr(power, "pause_before_life", pause)
    monkeypatch.setattr(power, "descriptors", lambda parts: 0)
    monkeypatch.setattr(Machine, "build", build)
    p = Power(fail)
    p.parts, p.machine = SimpleNamespace(owner=object()), Costly(clock)  # type: ignore[assignment]
    p._since = clock.now
    for _ in range(3):
        clock.passes(0.125)
        assert await p.reset(Event(), lambda: False)
    part = min(work, 1.0)
    assert pauses == [(0.125, 0.5 * part), (0.125, 0.75 * part), (0.125, 0.75 * part)]
