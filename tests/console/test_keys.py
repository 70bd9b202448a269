from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.console.keys import DEFAULT_DETACH, DetachKeys, format_keys, parse_keys
from aiovmm.errors import ConfigError


def test_the_text_form() -> None:
    assert parse_keys("ctrl-p,ctrl-q") == DEFAULT_DETACH == b"\x10\x11"
    assert parse_keys("ctrl-],x") == b"\x1dx"
    assert parse_keys("CTRL-A") == b"\x01"
    assert parse_keys("ctrl-@,ctrl-_") == b"\x00\x1f"
    assert parse_keys("none") == parse_keys("") == b""


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pp", "ctrl-é", "ab", "ctrl-p,,x", "ctrl-1", " "])
def test_what_is_not_a_key_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"detach-keys: .* is not a key"):
        parse_keys(text)


@given(st.binary(min_size=0, max_size=4).filter(lambda keys: all(k < 127 and chr(k) not in ", " for k in keys)))
def test_the_text_form_goes_both_ways(keys: bytes) -> None:
    assert parse_keys(format_keys(keys)) == keys


@given(
    keys=st.text("pq", min_size=1, max_size=4).map(str.encode),
    pieces=st.lists(st.text("pqx", max_size=5).map(str.encode), max_size=10),
)
def test_keys_are_found_however_they_are_typed(keys: bytes, pieces: list[bytes]) -> None:
    matcher, typed, forwarded = DetachKeys(keys), b"", b""
    for piece in pieces:
        typed += piece
        forward, detached = matcher.feed(piece)
        forwarded += forward
        assert detached == (keys in typed)
        if detached:
            assert forwarded == typed[: typed.index(keys)]
            return
        assert typed.startswith(forwarded)
        assert keys.startswith(typed[len(forwarded) :])
    assert forwarded + matcher.flush() == typed
    assert not matcher.holding


def test_a_lone_first_key_is_held_until_it_is_flushed() -> None:
    matcher = DetachKeys(DEFAULT_DETACH)
    assert matcher.feed(b"ls\x10") == (b"ls", False)
    assert matcher.holding
    assert matcher.flush() == b"\x10"
    assert matcher.feed(b"\x11") == (b"\x11", False)


def test_no_keys_never_detach() -> None:
    assert DetachKeys(b"").feed(b"\x10\x11") == (b"\x10\x11", False)
