"""What `expect` looks for, and how it looks without searching the same bytes again and again.

A search goes over the output in steps of a bounded size. Each begins `overlap` bytes before the place up to which the one
before it has looked, because a match may have begun there and end in what is new. So a step costs the same however much
is unread, and nothing is searched twice but the overlap; the price is that a match may have begun no earlier than that.

The bound matters for more than speed: `.*x` takes time with the square of a line's length, and the guest chooses that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from aiovmm.console.ring import HistoryRing
from aiovmm.errors import UsageError

__all__ = ["OVERLAP", "STEP", "Pattern", "PatternSearch", "SeparatorSearch"]

OVERLAP = 8192
"""Bytes before the new data in which a match may have begun."""

STEP = 8192
"""Bytes of new data that are searched at once."""

_CONTEXT = 64  # bytes before those, in which nothing may begin, but which `^`, `\\b` and a lookbehind must see

Pattern = bytes | re.Pattern[bytes]


class PatternSearch:
    """Searches for whichever of some regular expressions matches first; of two at one place, the one listed first."""

    def __init__(self, pattern: Pattern | Sequence[Pattern], overlap: int = OVERLAP) -> None:
        given = [pattern] if isinstance(pattern, (bytes, re.Pattern)) else list(pattern)
        self._patterns = [_compile(one) for one in given]
        if not self._patterns:
            raise UsageError("there is no pattern to expect")
        self._overlap = overlap
        self.seen = 0
        """Offset up to which has been searched."""

    @property
    def text(self) -> bytes:
        """The patterns as one would write them, for messages."""
        return b" | ".join(pattern.pattern for pattern in self._patterns)

    def step(self, ring: HistoryRing, cursor: int, end: int) -> tuple[re.Match[bytes], int] | None:
        """The first match in the next step of `cursor..end`, both offsets, and the offset where the match ends."""
        base = max(cursor, self.seen - self._overlap)
        before = max(cursor, base - _CONTEXT)
        self.seen = min(end, max(cursor, self.seen) + STEP)
        window = ring.read(before, self.seen - before)
        found = [m for pattern in self._patterns if (m := pattern.search(window, base - before)) is not None]
        if not found:
            return None
        first = min(found, key=lambda match: match.start())
        return first, before + first.end()


class SeparatorSearch:
    """Searches for a fixed string; a match is found wherever its pieces were cut."""

    def __init__(self, separator: bytes) -> None:
        if not separator:
            raise UsageError("the separator is empty")
        self._separator = separator
        self._seen = 0

    def run(self, ring: HistoryRing, cursor: int, end: int) -> int | None:
        """The offset just behind the first separator in `cursor..end`."""
        base = max(cursor, self._seen - len(self._separator) + 1)
        index = ring.read(base, end - base).find(self._separator)
        self._seen = end
        return None if index < 0 else base + index + len(self._separator)


def _compile(pattern: Pattern) -> re.Pattern[bytes]:
    if isinstance(pattern, str) or (isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str)):
        raise UsageError(f"a console speaks bytes: write rb{pattern!r}")
    try:
        return re.compile(pattern)
    except re.error as exc:
        raise UsageError(f"{pattern!r} is not a regular expression: {exc}") from None
