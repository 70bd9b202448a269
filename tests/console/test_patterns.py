"""Any pattern against any output: what is found is what Python's engine finds, and the loop has its turns meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.console import Console
from aiovmm.console.automaton import Automaton
from aiovmm.console.cost import match_cost
from aiovmm.console.ring import HistoryRing
from aiovmm.console.search import PatternSearch, Trial, _Any, _Short
from aiovmm.errors import ExpectTimeout, PatternTooSlow
from tests.console.test_search import step
from tests.limits import HANGS

ATOMS = st.sampled_from(
    ["a", "b", "c", ".", "[ab]", "[^a]", r"\w", r"\s", r"\n", "(?i:B)", "^", "$", r"\b", r"(?=b)", "(?<=a)"]
)


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{1,3}", "{2,}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    )


PATTERNS = st.recursive(ATOMS, larger, max_leaves=8).map(str.encode)
PIECES = st.lists(st.text("aabbcB \n", min_size=1, max_size=6).map(str.encode), min_size=1, max_size=6)


def finds_what_the_engine_finds(patterns: list[bytes], pieces: list[bytes], skip: int) -> None:
    ring, everything = HistoryRing(1000), b""
    search = PatternSearch(patterns)
    for piece in [b"", *pieces]:
        ring.write(piece)
        everything += piece
        if len(everything) < skip:
            continue
        naive = [m for p in patterns if (m := re.search(p, everything[skip:])) is not None]
        found = step(search, ring, skip, ring.end)
        assert (found is None) == (not naive), everything
        if found is not None:
            first = min(naive, key=lambda m: m.start())
            assert (found[0].re, found[0].groups(), found[1]) == (first.re, first.groups(), skip + first.end())
            return


@settings(max_examples=400, deadline=None)
@given(patterns=st.lists(PATTERNS, min_size=1, max_size=2), pieces=PIECES, skip=st.integers(0, 4))
def test_finds_what_the_engine_finds(patterns: list[bytes], pieces: list[bytes], skip: int) -> None:
    finds_what_the_engine_finds(patterns, pieces, skip)


@pytest.mark.parametrize(
    "pattern",
    [
        rb"(a|b)\1c",
        rb"x*a(?!b+c)",
        rb"(?:a*+b)*+c",
        rb"(a)?(?(1)b+|c+)a",
        rb"(?>a+)b*c$",
        rb"(?s:.*)c\Z",
        rb"[\W\d_-]+a",
    ],
)
@given(pieces=PIECES)
def test_what_no_automaton_can_do_is_found_all_the_same(pattern: bytes, pieces: list[bytes]) -> None:
    finds_what_the_engine_finds([pattern], pieces, 0)


def test_the_engine_is_asked_alone_where_it_needs_a_few_steps() -> None:
    for cheap in (rb"login: ", rb"[#$] ", rb"\r?\n", rb"(?i)panic|oops", rb"\bOops\b", rb"(?<!no )panic"):
        assert isinstance(PatternSearch(cheap)._searches[0], _Short), cheap
    for dear in (
        rb".*login: ",
        rb"guest:\S+ ?[#$] ",
        rb"(\w+\s*)+:",
        rb"a{0,60}b",
        rb"(?<=a{900})x",
        rb"(?=[ab]{99})b",
    ):
        assert isinstance(PatternSearch(dear)._searches[0], _Any), dear


def test_long_counted_repeats_make_no_large_automaton() -> None:
    automaton = Automaton(re.compile(rb"((a{1000}b){1000}c){1000}"), backwards=False)
    assert len(automaton.takes) < 3000
    assert not automaton.exact


def test_nested_repeats_make_an_automaton_of_their_own_size() -> None:
    """Each level made three copies of what it held: 12 of them, three million states and half a minute of the loop."""
    text = "a"
    for _ in range(8):
        text = f"(?:{text}b?)+"
    assert len(Automaton(re.compile(text.encode()), backwards=False).takes) < 100


def test_the_cost_of_patterns() -> None:
    def cost(pattern: bytes, length: int) -> int:
        return match_cost(re.compile(pattern), length)

    assert cost(rb"login: ", 8192) <= 8
    assert cost(rb".*login: ", 100) < 20_000 < cost(rb".*.*login: ", 1000)
    assert cost(rb"(\w+\s*)+:", 40) == 10**12
    assert cost(rb"(a|aa){30}", 40) > 10**8


HOSTILE = {
    rb"(\w+\s*)+:": b"a",
    rb".*login: ": b"login:",
    rb"guest:\S+ ?[#$] ": b"guest:",
    rb"(a|a)*b$": b"a",
    rb"(?=(a+)+b)a*c": b"a",
    rb"(.*?,){20}P": b"1,",
    rb"[ab]*a[ab]{12}c": b"aababbbabaab",
    rb"(?<=a{900})x": b"a",
    rb"(?=(?:[a-z]{1000}){8})x": b"a",
    rb"(?m)^.*# $": b"a# b",
}


def test_no_more_is_looked_at_than_what_can_have_changed() -> None:
    """`$` is decided by the two bytes behind it. The engine was asked again at each byte for as many as the overlap has."""
    ring, asked = HistoryRing(1 << 16), 0
    search = PatternSearch(rb"(?m)^.*# $")
    for byte in b"a line of many words, long enough that its cost is not the engine's alone # and so on" + b"x" * 200:
        ring.write(bytes([byte]))
        look, answer = search.look(ring, 0, ring.end), None
        with contextlib.suppress(StopIteration):
            while True:
                tried = isinstance(look.send(answer), Trial)
                asked, answer = asked + tried, False if tried else None
    assert 1 <= asked <= 5, "two more for `^`, which the pattern has too"


def test_a_short_pattern_needs_no_more_than_its_own_length_of_what_was_seen() -> None:
    for pattern, most in ((rb"\bOops\b", 8), (rb"(?<!no )panic", 8), (rb"# $", 4), (rb"a(?=b{3})", 4)):
        (short,) = PatternSearch(pattern)._searches
        assert isinstance(short, _Short)
        assert short._reach <= most


@pytest.mark.parametrize("pattern", HOSTILE)
async def test_hostile_output_leaves_the_loop_to_others(pattern: bytes) -> None:
    """A quarter of a mebibyte at once, then byte by byte: the engine alone takes minutes to ages for each."""
    console = Console(history=1 << 20)
    task = asyncio.create_task(console.expect(pattern, timeout=None))
    text = (HOSTILE[pattern] * (1 << 18))[: 1 << 18]
    console.feed(text)
    turns = longest = 0
    for byte in (text[:1], *(text[i : i + 1] for i in range(3000))):
        began = time.thread_time()  # not of others: the machine may be busy
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - began)  # type: ignore[assignment]
        turns += 1
        console.feed(byte)
    assert turns == 3001
    assert longest < 5, "one turn of the loop"
    task.cancel()
    await asyncio.wait([task], timeout=HANGS)
    assert task.done()


async def test_a_match_that_may_be_dear_is_tried_elsewhere_first() -> None:
    console = Console()
    console.feed(b"a line of many words that ends in a colon at last:")
    match = await console.expect(rb"(\w+\s*)+:", timeout=HANGS)
    assert match.group() == b"a line of many words that ends in a colon at last:"


async def test_a_match_that_takes_for_ever_is_an_error_that_names_the_pattern() -> None:
    console = Console()
    console.feed(b"a" * 4000 + b":")
    with pytest.raises(PatternTooSlow, match=r"\(\(a\+\)\+b\|a\+:\)") as caught:
        await console.expect(rb"((a+)+b|a+:)", timeout=None)
    assert isinstance(caught.value, ExpectTimeout)
    assert caught.value.received.endswith(b"a:")
    assert console.unread == b"a" * 4000 + b":", "nothing is lost"


@contextlib.contextmanager
def reaping() -> Iterator[None]:
    """A thread that takes the status of whatever child ends."""
    over = threading.Event()

    def reap() -> None:
        while not over.is_set():
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                over.wait(0.001)

    reaper = threading.Thread(target=reap)
    reaper.start()
    try:
        yield
    finally:
        over.set()
        last = os.posix_spawn("/bin/true", ["true"], {})  # the process may have other children, that live on
        reaper.join()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(last, 0)


async def test_a_match_is_tried_where_the_program_reaps_whatever_ends() -> None:
    """The event loop may not be told of the end of a process then."""
    console = Console()
    with reaping():
        for _ in range(5):
            console.feed(b"a line of many words that ends in a colon at last:")
            match = await asyncio.wait_for(console.expect(rb"(\w+\s*)+:", timeout=30), HANGS)
            assert match.group().endswith(b"last:")


async def test_a_byte_costs_the_same_however_long_its_line_is() -> None:
    """30,000 single bytes with `.*login: `: at 18 ms for each, as a search from the line's beginning takes, this hangs."""
    console = Console()
    task = asyncio.create_task(console.expect(rb".*login: ", timeout=None))
    for _ in range(30_000):
        console.feed(b"x")
        await asyncio.sleep(0)
    console.feed(b"login: ")
    assert (await asyncio.wait_for(task, HANGS)).group().endswith(b"xlogin: ")
