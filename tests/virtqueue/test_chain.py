"""A chain's cursors: over segment borders, to the end, and not one byte further."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.errors import ChainError
from aiovmm.virtqueue.chain import READ_LIMIT, Chain


def chain(readable: list[bytes], writable: list[int] | None = None) -> Chain:
    room = [memoryview(bytearray(n)) for n in writable or []]
    return Chain(7, [memoryview(r) for r in readable], room, sum(map(len, readable)), sum(writable or []))


def content(c: Chain) -> bytes:
    return b"".join(map(bytes, c.writable))


def test_reading_crosses_segments() -> None:
    c = chain([b"ab", b"c", b"defg"])
    assert [c.read(1), c.read(3), c.unread, c.read_all(), c.read(0)] == [b"a", b"bcd", 3, b"efg", b""]


def test_reading_past_the_end_is_the_guests_fault_and_names_the_chain() -> None:
    c = chain([b"abc"])
    with pytest.raises(ChainError) as caught:
        c.read(4)
    assert caught.value.head == 7
    assert c.read(3) == b"abc"  # nothing was lost by the attempt


def test_what_does_not_fit_is_not_written_at_all() -> None:
    c = chain([], [2, 2])
    c.write(b"a")
    with pytest.raises(ChainError):
        c.write(b"bcde")
    assert (content(c), c.written, c.room) == (b"a\0\0\0", 1, 3)


def test_room_can_be_filled_in_place() -> None:
    c = chain([], [2, 3])
    for part in c.reserve(4):
        part[:] = b"x" * len(part)
    assert (content(c), c.written) == (b"xxxx\0", 4)
    with pytest.raises(ChainError):
        c.reserve(2)


def test_a_copy_of_everything_is_bounded() -> None:
    """Overlapping descriptors can make a chain of 4 GiB out of one page."""
    page = memoryview(bytes(1 << 16))
    c = Chain(0, [page] * (READ_LIMIT // len(page) + 1), [], READ_LIMIT + len(page), 0)
    with pytest.raises(ChainError):
        c.read_all()
    assert len(c.read_all(limit=2 * READ_LIMIT)) > READ_LIMIT


def test_skipping() -> None:
    c = chain([b"abc", b"def"])
    c.skip(4)
    assert c.read_all() == b"ef"
    with pytest.raises(ChainError):
        c.skip(1)


@given(st.lists(st.binary(max_size=8), max_size=6), st.lists(st.integers(0, 9), max_size=12))
def test_any_split_reads_the_same(parts: list[bytes], steps: list[int]) -> None:
    c = chain(parts)
    got = b"".join(c.read(min(n, c.unread)) for n in steps)
    assert got + c.read_all() == b"".join(parts)


@given(st.lists(st.integers(0, 8), max_size=6), st.lists(st.binary(max_size=9), max_size=12))
def test_any_split_writes_the_same(sizes: list[int], steps: list[bytes]) -> None:
    c = chain([], sizes)
    expected = b""
    for text in steps:
        if len(text) <= c.room:
            c.write(text)
            expected += text
    assert content(c) == expected.ljust(sum(sizes), b"\0")
    assert c.written == len(expected)
