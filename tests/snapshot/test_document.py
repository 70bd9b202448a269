"""State as text: it comes back as it was, and no damage goes unnoticed."""

from __future__ import annotations

import hashlib
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.errors import SnapshotError
from aiovmm.snapshot.document import decode, encode

NAMES = st.text(max_size=8).filter(lambda name: not name.startswith("$") and name != "sha256")
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=200)
PLAIN = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=20
)
STATES = st.dictionaries(NAMES, PLAIN, min_size=1, max_size=5)
EXAMPLE = encode({"format": "x", "rows": [[1, 2], [3, 4]], "data": bytes(range(100)), "short": b"\0"})


@given(STATES)
def test_it_comes_back_as_it_was(state: dict[str, Any]) -> None:
    assert decode(encode(state)) == state


@given(STATES, st.data())
def test_any_byte_that_is_another_is_noticed(state: dict[str, Any], data: st.DataObject) -> None:
    document = bytearray(encode(state))
    document[data.draw(st.integers(0, len(document) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SnapshotError):
        decode(bytes(document))


@given(st.integers(0, len(EXAMPLE) - 1), st.binary(max_size=3))
def test_so_is_what_is_cut_short_or_is_longer(size: int, more: bytes) -> None:
    with pytest.raises(SnapshotError):
        decode(EXAMPLE[:size])
    with pytest.raises(SnapshotError):
        decode(EXAMPLE[:size] + b"!" + more + EXAMPLE[size:])


@given(st.binary(max_size=100))
def test_what_is_none_at_all_is_refused(text: bytes) -> None:
    with pytest.raises(SnapshotError):
        decode(text)


@pytest.mark.parametrize(
    "body",
    [
        b'", "a": 1.5}',
        b'", "a": NaN}',
        b'", "a": 1, "a": 2}',
        b'", "a": {"$hex": "zz"}}',
        b'", "a": {"$base64": "?"}}',
        b'", "a": {"$hex": "00", "b": 1}}',
        b'", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'", "a": ' + b"9" * 10_000 + b"}",
        b'", "a": "\xff"}',
        b'", "a": 1} 2',
    ],
)
def test_text_with_a_right_checksum_that_is_no_state(body: bytes) -> None:
    with pytest.raises(SnapshotError):
        decode(b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + body)


def test_small_parts_without_end_are_refused_before_they_are_taken_apart() -> None:
    """60 MiB of empty lists were 1.6 GiB of memory."""
    body = b'", "a": [' + b"[]," * 2_000_000 + b"0]}"
    tracemalloc.start()
    try:
        with pytest.raises(SnapshotError, match="more than 2000000 lists and objects"):
            decode(b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + body)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("state", [{"a": 1.5}, {"a": {1: 2}}, {"$a": 1}, {"a": (1, 2)}, {"a": {"sha256": 1}}])
def test_what_is_not_plain_is_not_written(state: Any) -> None:
    with pytest.raises(TypeError):
        encode(state)


def test_a_human_can_read_it() -> None:
    lines = EXAMPLE.decode().splitlines()
    assert lines[1] == ' "format": "x",'
    assert "  [1, 2]," in lines
    assert '  "$hex": "00"' in lines
