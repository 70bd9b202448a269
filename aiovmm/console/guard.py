"""What a guest may have a terminal do: print, move the cursor, change colours and modes; not: be asked, or reach beyond it.

A terminal answers queries as if somebody had typed the answer, and some sequences set the clipboard, name files to be written,
print on paper, or move windows. A guest that nobody trusts should not: `OutputGuard` leaves them out. What is left is what
`less`, `vi` and `htop` draw with; programs that ask the terminal who it is get no answer and take it for a plain one.

It follows the states of a terminal's parser (ECMA-48 5.4; xterm's control sequences), so a sequence is known for what it is
however it is cut to pieces, and one without an end holds back a bounded number of bytes.

    text        shown, but ENQ, and controls of eight bits (C1), which are bytes or characters of UTF-8
    ESC x       shown, but DECID (ESC Z)
    CSI ... x   shown if its end is among `_CSI_ENDS`, and it is no query
    OSC n; ...  shown if n is in `_OSC_SHOWN`, and it has no `?`: titles, colours, links
    DCS, SOS, PM, APC                                                      left out
"""

from __future__ import annotations

import re

__all__ = ["OutputGuard"]

_LONGEST = 4096
"""Bytes of one sequence: a longer one is left out up to its end."""

# Possessive: there is one way to read bytes as characters, and to look for others takes time that doubles with each of them.
_TEXT = re.compile(
    rb"(?:[\x00-\x04\x06-\x1a\x1c-\x7f]++|\xc2[\xa0-\xbf]|[\xc3-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]"
    rb"|[\xe1-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}|\xc2(?![\x80-\x9f])|[\xa0-\xc1\xc3-\xff])*+"
)
_CUT_CHARACTER = re.compile(rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z")
_C1 = re.compile(rb"\xc2?([\x80-\x9f])")
_CSI = re.compile(rb"([\x30-\x3f]*)([\x20-\x2f]*)([\x40-\x7e])?")
_CSI_ENDS = b"@ABCDEFGHIJKLMPSTXZ`abdefghlmrsu"
_PRIVATE_ENDS = {b"?": b"hlrsJK", b">": b"mhl", b"<": b"mhl", b"=": b"mhl"}
"""By the sign before the parameters: other ends are queries, of keys (m, u, g), graphics (S) or the terminal itself."""
_OSC_SHOWN = {
    b"%d" % number for number in (0, 1, 2, 4, 8, 10, 11, 12, *range(104, 113))
}  # and no other spelling of them
_STRING_END = re.compile(rb"\x07|\x1b\\|\x9c|\x18|\x1a")
_STRINGS = b"]PX^_"  # after ESC: OSC, DCS, SOS, PM, APC
_C1_STRINGS = b"\x90\x98\x9d\x9e\x9f"


class OutputGuard:
    """`feed` gives what is to be shown. One for each terminal."""

    def __init__(self) -> None:
        self._held = b""  # the beginning of a sequence, or of a character
        self._skipping = False  # inside a string that is left out

    def feed(self, output: bytes) -> bytes:
        """What is to be shown of `output` and of what was held back before it."""
        data, self._held = self._held + output, b""
        if (cut := _CUT_CHARACTER.search(data, max(0, len(data) - 3))) is not None:
            data, self._held = data[: cut.start()], cut.group()
        shown = bytearray()
        at = 0
        while at < len(data):
            at = self._skip(data, at) if self._skipping else self._step(data, at, shown)
        return bytes(shown)

    def _step(self, data: bytes, at: int, shown: bytearray) -> int:
        text = _TEXT.match(data, at)
        assert text is not None, "it matches nothing, too"
        shown += text.group()
        at = text.end()
        if at == len(data):
            return at
        if (control := _C1.match(data, at)) is not None:
            self._skipping = control.group(1) in _C1_STRINGS
            return control.end()
        return at + 1 if data[at] != 0x1B else self._escape(data, at, shown)

    def _skip(self, data: bytes, at: int) -> int:
        end = _STRING_END.search(data, at)
        if end is not None:
            self._skipping = False
            return end.end()
        return self._hold(data, len(data) - 1) if data.endswith(b"\x1b") else len(data)

    def _hold(self, data: bytes, at: int) -> int:
        """What begins at `at` is to be looked at when there is more."""
        self._held = data[at:] + self._held
        return len(data)

    def _escape(self, data: bytes, at: int, shown: bytearray) -> int:
        """The sequence at `at`; where to go on."""
        if at + 1 == len(data):
            return self._hold(data, at)
        second = data[at + 1]
        if second == ord("["):
            return self._csi(data, at, shown)
        if second in _STRINGS:
            return self._string(data, at, shown)
        if not 0x20 <= second < 0x7F:  # a terminal would go on with what follows it
            return at + 1
        end = at + 2
        if second <= 0x2F:  # of a character set: one more
            if end == len(data):
                return self._hold(data, at)
            if not 0x30 <= data[end] < 0x7F:
                return end
            end += 1
        if second not in b"Z\\":
            shown += data[at:end]
        return end

    def _csi(self, data: bytes, at: int, shown: bytearray) -> int:
        match = _CSI.match(data, at + 2)
        assert match is not None, "it matches nothing, too"
        parameters, between, end = match.groups()
        if end is None:  # it is cut, or something ends it that is in no sequence
            cut = match.end() == len(data) and match.end() - at <= _LONGEST
            return self._hold(data, at) if cut else match.end()
        private = parameters[:1] in _PRIVATE_ENDS and end not in _PRIVATE_ENDS[parameters[:1]]
        drawn = end in _CSI_ENDS and not between and not private
        if match.end() - at > _LONGEST:
            return match.end()
        if drawn or (between, end) in ((b" ", b"q"), (b"!", b"p")):
            shown += data[at : match.end()]
        return match.end()

    def _string(self, data: bytes, at: int, shown: bytearray) -> int:
        end = _STRING_END.search(data, at + 2) if data[at + 1] == ord("]") else None
        if end is None:
            if data[at + 1] == ord("]") and len(data) - at <= _LONGEST:
                return self._hold(data, at)
            self._skipping = True
            return at + 2
        number, _, rest = data[at + 2 : end.start()].partition(b";")
        known = number in _OSC_SHOWN and end.end() - at <= _LONGEST
        if known and b"?" not in rest.split(b";") and _TEXT.fullmatch(rest) and not re.search(rb"[\x00-\x1f]", rest):
            shown += data[at : end.end()]
        return end.end()
