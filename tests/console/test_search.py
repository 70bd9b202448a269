from __future__ import annotations

import re
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.console.ring import HistoryRing
from aiovmm.console.search import OVERLAP, STEP, Found, PatternSearch, SeparatorSearch, Trial
from aiovmm.errors import UsageError


def step(search: PatternSearch, ring: HistoryRing, cursor: int, end: int) -> Found | None:
    """One step, with every trial a success."""
    look, answer = search.look(ring, cursor, end), None
    while True:
        try:
            answer = True if isinstance(look.send(answer), Trial) else None
        except StopIteration as exc:
            return cast(Found | None, exc.value)


TEXT = st.text("abc\n", max_size=20).map(str.encode)
PATTERNS = st.sampled_from(
    [rb"ab+c", rb"^b", rb"(?m)^b", rb"c$", rb"a.*c", rb"(?s)a.*c", rb"(?<=ab)c", rb"\bab", rb"\n\n"]
)


@given(patterns=st.lists(PATTERNS, min_size=1, max_size=3), pieces=st.lists(TEXT, max_size=12), skip=st.integers(0, 9))
def test_finds_what_a_search_of_everything_finds(patterns: list[bytes], pieces: list[bytes], skip: int) -> None:
    ring, everything = HistoryRing(1000), b""
    search = PatternSearch(patterns)
    for piece in pieces:
        ring.write(piece)
        everything += piece
        if len(everything) < skip:
            continue
        unread = everything[skip:]
        naive = [m for p in patterns if (m := re.search(p, unread)) is not None]
        found = step(search, ring, skip, ring.end)
        assert (found is None) == (not naive)
        if found is not None:
            match, end = found
            first = min(naive, key=lambda m: m.start())
            assert match.group() == first.group()
            assert match.re == first.re
            assert end == skip + first.end()
            return


@given(separator=st.sampled_from([b"a", b"ab", b"aab", b"\n"]), pieces=st.lists(TEXT, max_size=12))
def test_finds_a_separator_wherever_it_is_cut(separator: bytes, pieces: list[bytes]) -> None:
    ring, everything = HistoryRing(1000), b""
    search = SeparatorSearch(separator)
    for piece in pieces:
        ring.write(piece)
        everything += piece
        index = everything.find(separator)
        found = search.run(ring, 0, ring.end)
        assert found == (None if index < 0 else index + len(separator))
        if found is not None:
            return


@given(gap=st.integers(0, 60), overlap=st.integers(1, 40))
def test_a_match_in_pieces_may_begin_within_the_overlap(gap: int, overlap: int) -> None:
    ring = HistoryRing(1000)
    search = PatternSearch(rb"(?s)<.*>", overlap)
    ring.write(b"." * 100 + b"<" + b"-" * gap)
    assert step(search, ring, 0, ring.end) is None
    ring.write(b">")
    assert (step(search, ring, 0, ring.end) is not None) == (gap + 1 <= overlap)


@given(before=st.integers(0, 3 * STEP))
def test_a_match_is_found_across_the_steps(before: int) -> None:
    ring = HistoryRing(1 << 20)
    ring.write(b"." * before + b"<needle>" + b"." * STEP)
    search = PatternSearch(rb"<\w+>")
    while (found := step(search, ring, 0, ring.end)) is None:
        assert search.seen < ring.end
    assert found[0].group() == b"<needle>"
    assert found[1] == before + 8


def test_a_caret_means_the_beginning_of_the_unread_output_only() -> None:
    ring = HistoryRing(1 << 16)
    search = PatternSearch(rb"^b", overlap=4)
    for _ in range(100):
        ring.write(b"ab")
        assert step(search, ring, 0, ring.end) is None


class CountingRing(HistoryRing):
    looked_at = 0
    most = 0

    def read(self, offset: int, size: int | None = None) -> bytes:
        data = super().read(offset, size)
        self.looked_at += len(data)
        self.most = max(self.most, len(data))
        return data


def test_each_search_looks_at_what_is_new_and_little_more() -> None:
    """One mebibyte in 16-byte pieces: searching from the beginning each time would look at 32 GiB."""
    ring = CountingRing(1 << 20)
    pattern, separator = PatternSearch(rb"never", overlap=256), SeparatorSearch(b"never")
    for _ in range(1 << 16):
        ring.write(b"0123456789abcdef")
        assert step(pattern, ring, ring.start, ring.end) is None
        assert separator.run(ring, ring.start, ring.end) is None
    assert ring.looked_at < (1 << 16) * (256 + 64 + 16 + 16 + 16)


def test_a_step_is_bounded_however_much_is_unread() -> None:
    ring = CountingRing(1 << 20)
    ring.write(b"a" * (1 << 20))
    search = PatternSearch(rb"never")
    steps = 0
    while search.seen < ring.end:
        assert step(search, ring, 0, ring.end) is None
        steps += 1
    assert steps == (1 << 20) // STEP
    assert ring.most <= STEP + OVERLAP + 64


def test_patterns_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="regular expression"):
        PatternSearch(b"(")
    with pytest.raises(UsageError, match="bytes"):
        PatternSearch(re.compile("text"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no pattern"):
        PatternSearch([])
    with pytest.raises(UsageError, match="empty"):
        SeparatorSearch(b"")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("login: ", "write rb'login: '"),
        (["login: "], "write rb'login: '"),
        (re.compile("x"), "write rb'x'"),
        (None, "None is no pattern"),
        (5, "5 is no pattern"),
        ([b"a", None], "None is no pattern"),
        (bytearray(b"a"), "is no pattern"),
    ],
)
def test_what_is_no_pattern_is_refused_by_what_it_is(pattern: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PatternSearch(pattern)  # type: ignore[arg-type]
