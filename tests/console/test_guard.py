"""What a guest that nobody trusts may have a terminal do."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.console.guard import OutputGuard
from aiovmm.console.replay import asks_terminal

SHOWN = {
    "text": b"login: \r\n\tx\x07\x08",
    "letters of other alphabets": "Grüße, 世界 \u00dd\u00db\U0001f600".encode(),
    "colours": b"\x1b[31;1mred\x1b[m\x1b[38;5;200mx\x1b[48;2;1;2;3m",
    "cursor": b"\x1b[2J\x1b[H\x1b[10;20H\x1b[5A\x1b[?25l\x1b[?25h\x1b7\x1b8\x1b[s\x1b[u",
    "alternate screen, mouse, paste": b"\x1b[?1049h\x1b[?1000h\x1b[?2004h\x1b[?1049l",
    "scrolling": b"\x1b[1;24r\x1bM\x1bD\x1b[L\x1b[M\x1b[3P\x1b[4@",
    "titles and links": b"\x1b]0;root@guest\x07\x1b]2;x\x1b\\\x1b]8;;http://example.org\x07link\x1b]8;;\x07",
    "keypad and character sets": b"\x1b=\x1b>\x1b(0lqk\x1b(B",
    "cursor's shape, soft reset": b"\x1b[2 q\x1b[!p",
    "modes kept, parts erased": b"\x1b[?1s\x1b[?1r\x1b[?2J\x1b[?K",
    "modified keys": b"\x1b[>4;2m",
}
LEFT_OUT = {
    "where is the cursor": b"\x1b[6n",
    "who are you": b"\x1b[c\x1b[>c\x1b[=c\x1b[0c\x1bZ\x05",
    "which version": b"\x1b[>q\x1b[>0q",
    "clipboard": b"\x1b]52;c;cm0gLXJmIC8K\x07\x1b]52;c;?\x1b\\",
    "clipboard, spelt otherwise": b"\x1b]0052;c;eA==\x07\x1b]000052;c;eA==\x07\x1b]00000;x\x07",
    "keys and graphics are asked": b"\x1b[?u\x1b[?4m\x1b[?1g\x1b[?1;1;0S",
    "colours are asked": b"\x1b]11;?\x07\x1b]4;1;?\x07",
    "titles are asked, windows moved": b"\x1b[21t\x1b[8;1000;1000t\x1b[22;0t\x1b[23t\x1b[2t",
    "media copy": b"\x1b[5i\x1b[?4i\x1b[4i",
    "modes are asked": b"\x1b[?2026$p\x1b[1$p",
    "file transfer, notifications": b"\x1b]1337;File=name=x:YQ==\x07\x1b]777;notify;a;b\x07\x1b]9;x\x07",
    "device control strings": b"\x1bP+q544e\x1b\\\x1bP$qm\x1b\\\x1bPtmux;\x1b\x1b]52;c;eA==\x07\x1b\\",
    "application strings": b"\x1b_Ga=q;\x1b\\\x1b^x\x1b\\\x1bXx\x1b\\",
    "key definitions, checksums": b"\x1b[1;1;1;1;1;1*y\x1b[0x",
    "controls of eight bits": b"\x9b\x85\x9d52;c;eA==\x07\x90x\x9c",
    "the same as characters": "\u009b\u0085\u009d52;c;eA==\x07\u0090x\u009c".encode(),
    "controls inside of a sequence": b"\x1b\x07\x1b\x00\x1b\x7f\x1b(\x1b[6n\x1b\x1b[6n",
}


def guarded(pieces: list[bytes]) -> bytes:
    guard = OutputGuard()
    return b"".join(guard.feed(piece) for piece in pieces)


@pytest.mark.parametrize("output", SHOWN.values(), ids=SHOWN.keys())
def test_what_draws_is_shown(output: bytes) -> None:
    assert guarded([output]) == output
    assert guarded([output[i : i + 1] for i in range(len(output))]) == output


@pytest.mark.parametrize("output", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_what_asks_or_reaches_further_is_left_out(output: bytes) -> None:
    left = guarded([b"before", output, b"after"])
    assert left.startswith(b"before")
    assert left.endswith(b"after")
    assert b"\x1b" not in left
    assert not re.search(rb"[\x80-\x9f\x05]", left)
    assert guarded([b"before", *(output[i : i + 1] for i in range(len(output))), b"after"]) == left


PIECES = st.sampled_from(
    [*SHOWN.values(), *LEFT_OUT.values(), b"\x1b", b"[", b"]", b"\\", b"P", b"52;", b"6n", b"\x07", b"\x18"]
)


@given(st.lists(PIECES | st.binary(max_size=6), max_size=12), st.integers(1, 7))
def test_however_it_is_cut_and_whatever_it_is_nothing_that_is_shown_is_answered(parts: list[bytes], size: int) -> None:
    output = b"".join(parts)
    whole = guarded([output])
    assert guarded([output[i : i + size] for i in range(0, len(output), size)]) == whole
    assert not asks_terminal(whole)
    assert b"\x1b]52" not in whole


def test_a_sequence_without_an_end_holds_back_a_bounded_number_of_bytes() -> None:
    for start in (b"\x1b[", b"\x1b]0;", b"\x1bP", b"\x1b]52;"):
        guard = OutputGuard()
        assert guard.feed(start) == b""
        for _ in range(100):
            guard.feed(b"1" * 1000)
            assert len(guard._held) < 6000
        guard.feed(b"\x07\x1b\\")
        assert guard.feed(b"text") == b"text"


@pytest.mark.timeout(20)  # it takes microseconds, or longer than anyone has
@pytest.mark.parametrize("letters", [b"x" * 60, b"\xff" * 60, b"\xc3\xa9x" * 30, b"\xe0\xa0\xa0\xa1" * 20])
def test_a_title_that_is_no_text_after_all_is_known_for_that_at_once(letters: bytes) -> None:
    assert OutputGuard().feed(b"\x1b]0;" + letters + b"\x97\x07") == b""
    assert OutputGuard().feed(b"\x1b]0;" + letters + b"\x07") == b"\x1b]0;" + letters + b"\x07"
