"""State as a file has it: text, and nothing but plain data."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

__all__ = ["as_text", "damaged", "from_text", "through_text"]


def as_text(state: Any) -> str:
    """Plain data as a file has it. Raises AssertionError for anything else."""
    _check(state)
    return json.dumps(state, default=lambda value: {"hex": value.hex()})


def from_text(text: str) -> Any:
    """The inverse."""
    return json.loads(text, object_hook=lambda found: bytes.fromhex(found["hex"]) if found.keys() == {"hex"} else found)


def through_text(state: Any) -> Any:
    """As it comes back."""
    return from_text(as_text(state))


def _check(value: Any) -> None:
    """JSON would take tuples, enumerations and numbers as names, and give something else back."""
    if isinstance(value, dict):
        assert all(type(key) is str for key in value), value
        for inner in value.values():
            _check(inner)
    elif isinstance(value, list):
        for inner in value:
            _check(inner)
    else:
        assert value is None or type(value) in (bool, int, str, bytes), repr(value)


_ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([0xFF, 0x100, 0xFFFF, 0x10000, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**64, 2**200, -1, 4096]),
    st.integers(0, 2**64),
    st.binary(max_size=40),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
    st.lists(st.integers(0, 70000), max_size=4),
    st.just([{}]),
)


@st.composite
def damaged(draw: st.DrawFn, state: Any) -> Any:
    """The same state with a few values anywhere in it that are others, gone, twice or too many."""
    for _ in range(draw(st.integers(1, 3))):
        state = _damage(draw, state, draw(st.integers(0, 12)))
    return state


def _damage(draw: st.DrawFn, value: Any, depth: int) -> Any:
    if isinstance(value, dict) and value and depth:
        key = draw(st.sampled_from(sorted(value)))
        what = draw(st.integers(0, 19))
        if what == 0:
            return {name: inner for name, inner in value.items() if name != key}
        if what == 1:
            return {**value, "unknown": draw(_ANYTHING)}
        return {**value, key: _damage(draw, value[key], depth - 1)}
    if isinstance(value, list) and value and depth:
        at = draw(st.integers(0, len(value) - 1))
        what = draw(st.integers(0, 9))
        if what == 0:
            return value[:at] + value[at + 1 :]
        if what == 1:
            return [*value, value[at]]
        return [*value[:at], _damage(draw, value[at], depth - 1), *value[at + 1 :]]
    if isinstance(value, bytes) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return value[:at] + bytes([draw(st.integers(0, 255))]) + value[at + 1 :]
    if type(value) is int and draw(st.booleans()):
        return value ^ 1 << draw(st.integers(0, 63))
    return draw(_ANYTHING)
