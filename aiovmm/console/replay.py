"""Showing old output to a terminal again, without the terminal answering old questions.

A guest asks its terminal things: a shell, where the cursor is (`ESC [ 6 n`). The answer is typed into the guest's input.
When history is shown to a terminal that attaches late, it must not answer again: the guest would read line noise.
"""

from __future__ import annotations

import re

__all__ = ["LONGEST_QUERY", "QueryFilter", "asks_terminal"]

_QUERIES = re.compile(
    rb"\x1b\[(?:\?[\d;]*)?[56]n"  # DSR: status, cursor position (ECMA-48 8.3.35)
    rb"|\x1b\[\?(?:15|25|26|53|55|56|62|63|75|85)(?:;\d+)?n"  # DEC's forms of DSR
    rb"|\x1b\[[>=]?[\d;]*c"  # DA: primary, secondary, tertiary (8.3.24)
    rb"|\x1bZ"  # DECID
    rb"|\x1b\[>\d*q"  # XTVERSION
    rb"|\x1b\[\??[\d;]*\$p"  # DECRQM
    rb"|\x1b\[[\d;]*x"  # DECREQTPARM
    rb"|\x1b\[\?[\d;]*[gmuS]"  # XTQFMTKEYS, XTQMODKEYS, kitty's keyboard, XTSMGRAPHICS
    rb"|\x1b\[[\d;]*(?:\$[uw]|[*]y|&u|'[|]|\"v|#[|R]|[+]x)"  # DECRQTSR, DECRQPSR, DECRQCRA and the like, XTREPORT*
    rb"|\x1b\[(?:1[1345689]|2[01])(?:;\d+)?t"  # xterm: window reports
    rb"|\x1b\](?:\d+;)+\?(?:\x07|\x1b\\)"  # OSC: colour and clipboard queries
    rb"|\x1bP[+$]q[^\x1b]*\x1b\\"  # DCS: XTGETTCAP, DECRQSS
    rb"|\x1b_G[^\x1b]*\x1b\\"  # APC: kitty's graphics, which a terminal acknowledges
    rb"|\x05"  # ENQ
)

_UNFINISHED = re.compile(rb"\x1b(?:\[[>=?\d;]{0,58}[$*&'\x22#+]?|[\]P_][^\x07\x1b]{0,60}\x1b?)?\Z")
LONGEST_QUERY = 64
"""Bytes of one: what is longer is not one of the queries above."""


def asks_terminal(output: bytes) -> bool:
    """Whether `output` has a control sequence that a terminal answers."""
    return (b"\x1b" in output or b"\x05" in output) and _QUERIES.search(output) is not None


class QueryFilter:
    """Removes from output, however it is cut to pieces, the control sequences that a terminal answers."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, output: bytes) -> bytes:
        """What is to be shown of `output`, and of what was held back before it as a query's possible beginning."""
        output = _QUERIES.sub(b"", self._held + output)
        unfinished = _UNFINISHED.search(output, max(0, len(output) - LONGEST_QUERY))
        self._held = unfinished.group() if unfinished else b""
        return output[: len(output) - len(self._held)]

    def flush(self) -> bytes:
        """What is still held back: no query is going to come of it."""
        held, self._held = self._held, b""
        return held
