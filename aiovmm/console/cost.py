"""What a backtracking engine may pay for a match, from the expression alone: a bound, for a text that the guest chooses."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

__all__ = ["MOST", "Shape", "match_cost", "shape_of"]

MOST = 10**12
"""What is dearer than this is all the same."""

_parser: Any = re._parser  # type: ignore[attr-defined]
_constants: Any = re._constants  # type: ignore[attr-defined]


class Shape:
    """`looks`: the most bytes that a match asks for besides its own (`(?=`, `(?<=`; two for `^`, `$`, `\\b`); `span`: with those
    of the match itself. MOST if there is no bound.

    What lies `span` bytes and more behind a place decides nothing there: no match where there was none.
    """

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self.parsed = _parser.parse(pattern.pattern, pattern.flags)
        width, self.looks = _widths(self.parsed)
        self.span = min(MOST, width + self.looks)


@lru_cache(maxsize=256)
def shape_of(pattern: re.Pattern[bytes]) -> Shape:
    """Parsed once for all who expect the same."""
    return Shape(pattern)


@lru_cache(maxsize=4096)
def match_cost(pattern: re.Pattern[bytes], length: int) -> int:
    """Steps that an attempt to match at one place may take in `length` bytes of text."""
    shape = shape_of(pattern)
    return min(MOST, _ways(shape.parsed, length) * (min(length, shape.span) + 1))


def _ways(items: Any, length: int) -> int:
    """In how many ways a sequence can be tried."""
    ways = 1
    for op, argument in items:
        ways = min(MOST, ways * _ways_of(str(op), argument, length))
    return ways


def _ways_of(op: str, argument: Any, length: int) -> int:
    match op:
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, inner = argument
            return _ways_to_repeat(least, most, inner, length)
        case "BRANCH":
            return sum(_ways(branch, length) for branch in argument[1])
        case "SUBPATTERN":
            return _ways(argument[3], length)
        case "ATOMIC_GROUP":
            return _ways(argument, length)
        case "ASSERT" | "ASSERT_NOT":
            return _ways(argument[1], length)
        case "GROUPREF":
            return length + 1
        case "GROUPREF_EXISTS":
            return _ways(argument[1], length) + _ways(argument[2] or [], length)
    return 1


def _ways_to_repeat(least: int, most: int, inner: Any, length: int) -> int:
    shortest, longest = inner.getwidth()
    times = min(most, length)
    each = _ways(inner, length)
    if each == 1 and shortest == longest:
        return times - min(least, times) + 1
    exponent = min(times, 64)  # each time anew, and where one ends the next may begin in many places
    return int(min(MOST, max(2, each) ** exponent))


def _widths(items: Any) -> tuple[int, int]:
    """The most bytes that a sequence takes, and that it looks at besides, each up to MOST."""
    takes = looks = 0
    for op, argument in items:
        taken, looked = _widths_of(str(op), argument)
        takes, looks = min(MOST, takes + taken), min(MOST, looks + looked)
    return takes, looks


def _widths_of(op: str, argument: Any) -> tuple[int, int]:
    match op:
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            _least, most, inner = argument
            takes, looks = _widths(inner)
            return min(MOST, most * takes), min(MOST, most * looks)
        case "BRANCH":
            return _widest(argument[1])
        case "SUBPATTERN":
            return _widths(argument[3])
        case "ATOMIC_GROUP":
            return _widths(argument)
        case "ASSERT" | "ASSERT_NOT":
            return 0, min(MOST, sum(_widths(argument[1])))
        case "AT":
            return 0, 2  # `$` is before a newline too
        case "GROUPREF":
            return MOST, 0
        case "GROUPREF_EXISTS":
            return _widest([argument[1], argument[2] or []])
    return 1, 0


def _widest(branches: Any) -> tuple[int, int]:
    takes, looks = zip(*map(_widths, branches), strict=True)
    return max(takes), max(looks)
