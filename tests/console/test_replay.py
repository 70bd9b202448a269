from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.console import Console
from aiovmm.console.replay import QueryFilter

QUERIES = [
    b"\x1b[6n",
    b"\x1b[5n",
    b"\x1b[?6n",
    b"\x1b[c",
    b"\x1b[0c",
    b"\x1b[>0c",
    b"\x1bZ",
    b"\x1b[>q",
    b"\x1b[?2026$p",
    b"\x1b[18t",
    b"\x1b]11;?\x07",
    b"\x1b]4;1;?\x1b\\",
    b"\x1bP+q544e\x1b\\",
    b"\x1b[?u",
    b"\x1b[?4m",
    b"\x1b[?1g",
    b"\x1b[?2;1;0S",
    b"\x1b[1$w",
    b"\x1b[1;1;1;1;2;2*y",
    b"\x1b[&u",
    b"\x1b[1'|",
    b'\x1b["v',
    b"\x1b[#R",
    b"\x1b[1;1;2;2#|",
    b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\",
    b"\x05",
]
SHOWN = [
    b"text",
    b"\r\n",
    b"\x1b[1;31m",
    b"\x1b[2J",
    b"\x1b]0;title\x07",
    b"\x1b[?25l",
    b"\x1b[6;10H",
    b"6n",
    b"\x1b(B",
    b"c",
    b"\x1b[s\x1b[u",
    b"\x1b[3S",
    b"\x1b[2'}",
    b"\x1b[ q",
]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_removed(query: bytes) -> None:
    queries = QueryFilter()
    assert queries.feed(b"a" + query + b"b") + queries.flush() == b"ab"


@given(parts=st.lists(st.sampled_from(QUERIES + SHOWN), max_size=12), data=st.data())
def test_everything_else_is_shown_however_it_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    output = b"".join(parts)
    queries, shown = QueryFilter(), b""
    while output:
        cut = data.draw(st.integers(1, len(output)))
        shown += queries.feed(output[:cut])
        output = output[cut:]
    assert shown + queries.flush() == b"".join(part for part in parts if part not in QUERIES)


def test_what_never_becomes_a_query_is_not_held_back_for_ever() -> None:
    queries = QueryFilter()
    assert queries.feed(b"\x1b]" + b"x" * 100) == b"\x1b]" + b"x" * 100


async def test_a_view_keeps_live_queries_and_says_what_is_missing() -> None:
    console = Console(history=32)
    console.feed(b"x" * 40 + b"old\x1b[6n")
    view = console.view()
    console.feed(b"new\x1b[6n")
    shown = b""
    while b"new" not in shown:
        shown += await view.read()
    assert shown == b"\r\n[22 bytes of earlier output are not shown]\r\n" + b"x" * 18 + b"oldnew\x1b[6n"
    console.feed(b"y" * 50)
    assert await view.read() == b"\r\n[18 bytes of earlier output are not shown]\r\n" + b"y" * 32
    console.close()
    assert await view.read() == b""
