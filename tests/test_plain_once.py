"""State that is loaded many times is read once, and what is wrong with it is told each time."""

from __future__ import annotations

import pytest

from aiovmm.errors import SnapshotError
from aiovmm.runtime.plain import Fields, State, kept, once

STATE: State = {"inner": {"count": 3}, "several": [{"count": 4}, {"count": 5}], "data": b"x"}


class Reader:
    """Counts how often it was asked to read."""

    def __init__(self) -> None:
        self.calls = 0

    def read(self, state: State, high: int) -> tuple[int]:
        self.calls += 1
        return (Fields(state, "one").number("count", 0, high),)


def test_kept_state_is_equal_and_a_copy() -> None:
    state = kept(STATE)
    assert state == STATE
    assert all(state[name] is not STATE[name] for name in ("inner", "several"))


def test_state_that_nobody_keeps_is_read_each_time() -> None:
    reader = Reader()
    assert once(STATE["inner"], reader.read, 9) == once(STATE["inner"], reader.read, 9) == (3,)
    assert reader.calls == 2


def test_kept_state_is_read_once_for_each_question() -> None:
    state, reader, other = kept(STATE), Reader(), Reader()
    first = once(state["inner"], reader.read, 9)
    assert once(state["inner"], reader.read, 9) is first
    assert reader.calls == 1
    assert once(state["inner"], reader.read, 8) == (3,), "another question is another answer, though it may be equal"
    assert once(state["inner"], other.read, 9) == (3,)
    assert (reader.calls, other.calls) == (2, 1)
    assert [once(part, reader.read, 9) for part in state["several"]] == [(4,), (5,)], "each part has its own"


def test_what_is_wrong_is_told_each_time_and_for_each_question() -> None:
    state, reader = kept(STATE), Reader()
    for _ in range(2):
        with pytest.raises(SnapshotError, match="count is 3, not a number from 0 to 2"):
            once(state["inner"], reader.read, 2)
    assert once(state["inner"], reader.read, 3) == (3,)
    assert reader.calls == 3
