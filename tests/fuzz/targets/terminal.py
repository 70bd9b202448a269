"""What a guest prints at a terminal: what is shown of it does not depend on how it is cut, and has nothing in it that was to be
left out."""

from __future__ import annotations

from itertools import pairwise

from aiovmm.console.guard import OutputGuard
from aiovmm.console.replay import QueryFilter, asks_terminal
from aiovmm.console.screen import ScreenModes
from tests.fuzz.source import Source

SEEDS = [
    b"\x05\x05text\x1b[31mred\x1b[0m\x1b[6n\x1b]52;c;aGk=\x07more",
    b"\x10\x20\x1bP+q544e\x1b\\\x1b_Gi=1\x1b\\\x9b6n\xc2\x9bc\xe2\x82\xac",
    b"\x01\x01\x1b[?1049h\x1b[?25l\x1b[>c\x1b[!p\x1b[ q\x1b(0lqk\x1b(B",
]


def _in_pieces(guard: OutputGuard | QueryFilter, source: Source, text: bytes) -> bytes:
    first, second = source.below(len(text) + 1), source.below(len(text) + 1)
    cuts = [0, *sorted((first, second)), len(text)]
    return b"".join(guard.feed(text[start:end]) for start, end in pairwise(cuts))


def run(data: bytes) -> None:
    source = Source(data)
    head, text = Source(source.take(8)), source.rest()
    shown = OutputGuard().feed(text)
    assert _in_pieces(OutputGuard(), head, text) == shown
    assert len(shown) <= len(text)
    assert not asks_terminal(shown), shown
    queries = QueryFilter()
    replayed = queries.feed(text) + queries.flush()
    assert len(replayed) <= len(text)
    _in_pieces(QueryFilter(), head, text)
    modes = ScreenModes()
    modes.feed(text)
    modes.undo()
