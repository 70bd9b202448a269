"""What is the same for many guests is made once, and not kept for ever."""

from __future__ import annotations

import pytest

from aiovmm.runtime.prepared import Prepared


def test_it_is_made_once_for_a_key() -> None:
    made: list[str] = []
    prepared: Prepared[str] = Prepared(2)

    def make(key: str) -> str:
        def twice() -> str:
            made.append(key)
            return key * 2

        return prepared.get(key, twice)

    assert [make(key) for key in "abab"] == ["aa", "bb", "aa", "bb"]
    assert made == ["a", "b"]
    make("c")
    assert made == ["a", "b", "c"]
    make("b")
    assert made == ["a", "b", "c"], "the oldest made room, and no other"
    make("a")
    assert made == ["a", "b", "c", "a"]


def test_what_could_not_be_made_is_tried_again() -> None:
    prepared: Prepared[int] = Prepared(1)
    with pytest.raises(ZeroDivisionError):
        prepared.get("x", lambda: 1 // 0)
    assert prepared.get("x", lambda: 1) == 1
