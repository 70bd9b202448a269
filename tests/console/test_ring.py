from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.console.ring import HistoryRing
from aiovmm.errors import UsageError


@given(capacity=st.integers(1, 40), writes=st.lists(st.binary(max_size=100), max_size=30), data=st.data())
def test_keeps_the_newest_bytes_like_a_plain_string(capacity: int, writes: list[bytes], data: st.DataObject) -> None:
    ring, everything = HistoryRing(capacity), b""
    for written in writes:
        ring.write(written)
        everything += written
        assert ring.end == len(everything)
        assert ring.start == max(0, len(everything) - capacity)
        assert ring.read(ring.start) == everything[ring.start :]
        offset = data.draw(st.integers(ring.start, ring.end))
        size = data.draw(st.integers(0, capacity + 3))
        assert ring.read(offset, size) == everything[offset : offset + size]


def test_refuses_offsets_that_it_does_not_hold() -> None:
    ring = HistoryRing(4)
    ring.write(b"abcdef")
    for offset in (-1, 1, 7):
        with pytest.raises(IndexError, match=r"2\.\.6"):
            ring.read(offset)
    assert ring.read(6) == b""
    assert ring.read(3, -5) == b""


def test_takes_memory_only_as_it_fills() -> None:
    ring = HistoryRing(1 << 20)
    ring.write(b"x" * 100)
    assert ring._buffer.__sizeof__() < 1000
    ring.write(bytes(8 << 20))
    assert ring._buffer.__sizeof__() < (1 << 20) * 1.2


def test_a_history_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError):
        HistoryRing(0)


@given(st.integers(1, 20), st.lists(st.binary(max_size=30) | st.integers(0, 60), max_size=12), st.binary(max_size=20))
def test_what_never_came_counts_as_lost_and_all_after_it_is_kept(
    capacity: int, steps: list[bytes | int], last: bytes
) -> None:
    ring, end, kept = HistoryRing(capacity), 0, b""
    for step in [*steps, last]:
        if isinstance(step, bytes):
            ring.write(step)
            kept, end = (kept + step)[-capacity:], end + len(step)
        else:
            ring.skip(step)
            kept, end = b"" if step else kept, end + step
        assert (ring.start, ring.end, ring.read(ring.start)) == (end - len(kept), end, kept)


def test_to_lose_any_number_again_and_again_costs_nothing() -> None:
    """A pool's worker that a guest has taken over may say so: 16 times in a turn of the loop."""
    ring = HistoryRing(64 << 20)
    ring.skip(1 << 62)
    before = time.thread_time()
    for _ in range(1000):
        ring.skip(64 << 20)
    assert time.thread_time() - before < 0.5
    ring.write(b"seen")
    assert ring.read(ring.start) == b"seen"
