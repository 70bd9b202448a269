"""Expecting something of a console: any expression, any output, in any pieces; what is found is a match, and looking ends."""

from __future__ import annotations

import re

from aiovmm.console.ring import HistoryRing
from aiovmm.console.search import PatternSearch, SeparatorSearch
from aiovmm.errors import UsageError
from tests.fuzz.source import Source

SEEDS = [
    b"\x0alogin: \\Z?\x08a login: b\x05login",
    b"\x08(a|b)*c$\x10ababababababac\nabc",
    b"\x06\\bx.{3}\x0axxxxx yyyx",
    b"\x09(?i)a(?=b)\x04aAbB",
]


def run(data: bytes) -> None:
    source = Source(data)
    expression = source.some(24)
    if re.search(rb"\d{3}", expression):
        return  # repetitions of more than 99: automata of many states, whose size is bounded elsewhere
    try:
        search = PatternSearch(expression)
        separator = SeparatorSearch(expression)
    except UsageError:
        return
    except (OverflowError, RecursionError):
        return  # of re itself
    ring, written = HistoryRing(1 << 12), 0
    while source:
        piece = source.some(64)
        ring.write(piece)
        written += len(piece)
        looks = search.look(ring, ring.start, written)
        answer: bool | None = None
        for _ in range(10_000):
            try:
                trial = looks.send(answer)
            except StopIteration as end:
                if end.value is not None:
                    match, at = end.value
                    assert at <= written
                    assert match.re.match(match.string, match.start()) is not None
                    return
                break
            answer = None if trial is None else True
        else:
            raise AssertionError("it looks for ever")
        found = separator.run(ring, ring.start, written)
        assert found is None or ring.read(found - len(expression), len(expression)) == expression
