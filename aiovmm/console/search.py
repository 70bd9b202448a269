"""What `expect` looks for, and how it looks: each byte once, whatever the expression and whatever the guest prints.

A search goes over the output in steps of a bounded size. An expression whose matches are short is searched by Python's engine, in
what is new and as many bytes before it as a match may have. For any other, an automaton follows the output byte by byte; when it
says that a match has ended, another, backwards, says where the first begins, and only there is the engine asked. If even
that may be dear, the match is first tried where nobody waits for it: a `Trial`, which the shell carries out.
No match is found that begins more than `overlap` bytes before what is new.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import Any

from aiovmm.console.ring import HistoryRing
from aiovmm.errors import UsageError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["OVERLAP", "STEP", "Found", "Look", "Pattern", "PatternSearch", "SeparatorSearch", "Trial"]

OVERLAP = 8192
"""Bytes before the new data in which a match may have begun."""

STEP = 8192
"""Bytes of new data that are searched at once."""

_CONTEXT = 64  # bytes before those, in which nothing may begin, but which `^`, `\\b` and a lookbehind must see
_SHORT = 64  # steps of the engine at each place: an expression that may take more has its automaton
_AT_ONCE = 200_000  # steps of the engine that the loop may wait for: 2 ms

Pattern = bytes | re.Pattern[bytes]
_ONE = bytes | bytearray | memoryview | str  # sequences that are one thing
Found = tuple[re.Match[bytes], int]
"""A match, and the offset where it ends."""


@dataclass(frozen=True)
class Trial:
    """To be found out at leisure: whether `pattern`, at `start` of `text` (`anywhere`: or behind it), matches in good time."""

    pattern: re.Pattern[bytes]
    text: bytes
    start: int
    anywhere: bool


Look = Generator[Trial | None, bool | None, Found | None]
"""Yields None to let others have their turn, or a Trial, to be sent whether it succeeded; returns what was found."""


class PatternSearch:
    """Searches for whichever of some regular expressions matches first; of two at one place, the one listed first."""

    def __init__(self, pattern: Pattern | Sequence[Pattern], overlap: int = OVERLAP) -> None:
        given = list(pattern) if isinstance(pattern, Sequence) and not isinstance(pattern, _ONE) else [pattern]
        patterns = [_compile(one) for one in given]
        if not patterns:
            raise UsageError("there is no pattern to expect")
        self.text = b" | ".join(pattern.pattern for pattern in patterns)
        """The patterns as one would write them, for messages."""
        self.seen = 0
        """Offset up to which has been searched."""
        self._overlap = overlap
        self._searches = [_search_for(one, overlap) for one in patterns]

    def look(self, ring: HistoryRing, cursor: int, end: int) -> Look:
        """The first match in the next step of `cursor..end`."""
        new = max(cursor, self.seen)
        self.seen = min(end, new + STEP)
        base = max(cursor, new - self._overlap)
        before = max(cursor, base - _CONTEXT)
        window = _Window(before, base, new, ring.read(before, self.seen - before))
        found: list[Found] = []
        for search in self._searches:
            match = yield from search.look(window)
            if match is not None:
                found.append((match, before + match.end()))
        return min(found, key=lambda pair: pair[0].start()) if found else None


@dataclass(frozen=True)
class _Window:
    """`text` from offset `before` on; from `base` on a match may begin, and from `new` on it has not been searched."""

    before: int
    base: int
    new: int
    text: bytes


class _Short:
    """By the engine alone, which needs no more than a few steps at each place."""

    def __init__(self, pattern: re.Pattern[bytes], reach: int) -> None:
        self._pattern = pattern
        self._reach = reach

    def look(self, window: _Window) -> Generator[Trial | None, bool | None, re.Match[bytes] | None]:
        base = max(window.base, window.new - self._reach)
        return self._pattern.search(window.text, base - window.before)
        yield


class _Any:
    """By automata, and the engine where they say that it is worth it."""

    def __init__(self, pattern: re.Pattern[bytes], looks: int) -> None:
        """`looks`: see Shape."""
        from aiovmm.console.automaton import automaton_of
        from aiovmm.console.cost import match_cost

        self._cost = match_cost
        self._pattern = pattern
        self._looks = looks
        self._ends, self._begins, self._exact = automaton_of(pattern)
        self._state = self._ends.first()
        self._at = -1
        self._doubtful = 0  # before this offset, what was no match may have become one: it looks ahead

    def look(self, window: _Window) -> Generator[Trial | None, bool | None, re.Match[bytes] | None]:
        if self._at != window.new:  # a gap, or the first time
            self._state = self._ends.first()
        doubtful = window.new < self._doubtful
        end = window.new if self._state.ends else None
        for mark in self._ends.scan(self._state, window.text[window.new - window.before :]):
            if mark is None:
                yield None
            elif mark[0] < 0:
                self._state = mark[1]
            else:
                end = window.new + mark[0]
        self._at = window.before + len(window.text)
        if end is not None:
            self._doubtful = end + self._looks
        elif not doubtful:
            return None
        start = yield from self._first_begin(window)
        return None if start is None else (yield from self._match(window, start))

    def _first_begin(self, window: _Window) -> Generator[None, None, int | None]:
        """Where in the text the first match begins."""
        first = len(window.text) if self._begins.first().ends else None
        backwards = window.text[window.base - window.before :][::-1]
        for mark in self._begins.scan(self._begins.first(), backwards):
            if mark is None:
                yield None
            elif mark[0] > 0:
                first = len(window.text) - mark[0]
        return first

    def _match(self, window: _Window, start: int) -> Generator[Trial | None, bool | None, re.Match[bytes] | None]:
        left = len(window.text) - start
        cost = self._cost(self._pattern, left) * (1 if self._exact else left + 1)
        if cost > _AT_ONCE and not (yield Trial(self._pattern, window.text, start, not self._exact)):
            return None
        return (self._pattern.match if self._exact else self._pattern.search)(window.text, start)


def _search_for(pattern: re.Pattern[bytes], overlap: int) -> _Short | _Any:
    from aiovmm.console.cost import match_cost, shape_of  # by who expects something

    shape = shape_of(pattern)
    if shape.span < overlap and match_cost(pattern, overlap) <= _SHORT:
        return _Short(pattern, shape.span)
    return _Any(pattern, min(shape.looks, overlap))


class SeparatorSearch:
    """Searches for a fixed string; a match is found wherever its pieces were cut."""

    def __init__(self, separator: bytes) -> None:
        if not isinstance(separator, bytes):
            raise UsageError(f"a console speaks bytes, and {separator!r} is none")
        if not separator:
            raise UsageError("the separator is empty")
        self._separator = separator
        self._seen = 0

    def run(self, ring: HistoryRing, cursor: int, end: int) -> int | None:
        """The offset just behind the first separator in `cursor..end`."""
        base = max(cursor, self._seen - len(self._separator) + 1)
        while end - base >= len(self._separator):
            window = min(end - base, STEP + len(self._separator))  # not all that there is, for each line of it
            index = ring.read(base, window).find(self._separator)
            if index >= 0:
                return base + index + len(self._separator)
            base += STEP + 1
        self._seen = end
        return None


def _compile(pattern: Any) -> re.Pattern[bytes]:
    if isinstance(pattern, str) or (isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str)):
        text = pattern if isinstance(pattern, str) else pattern.pattern
        raise UsageError(f"a console speaks bytes: write rb{text!r}")
    if not isinstance(pattern, bytes | re.Pattern):
        raise UsageError(f"{pattern!r} is no pattern: write it like rb'login: '")
    try:
        return re.compile(pattern)
    except re.error as exc:
        raise UsageError(f"{pattern!r} is not a regular expression: {exc}") from None
