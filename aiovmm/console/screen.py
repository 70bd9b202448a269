"""What a guest's programs did to the terminal's modes, and how to undo it when the terminal is detached."""

from __future__ import annotations

__all__ = ["ScreenModes"]

_ALTERNATE_ON = b"\x1b[?1049h"
_ALTERNATE_OFF = b"\x1b[?1049l"
_ORDINARY = (
    b"\x1b[m"  # no attributes
    b"\x1b[?25h"  # cursor visible
    b"\x1b[?2004l"  # no bracketed paste
    b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l"  # no mouse reports
    b"\x1b[?1l\x1b>"  # cursor keys and keypad as they are at first
)


class ScreenModes:
    """Follows whether the alternate screen is shown: leaving one that is not shown would move the cursor."""

    def __init__(self) -> None:
        self._alternate = False
        self._tail = b""

    def feed(self, output: bytes) -> None:
        """`output` is what is shown next."""
        seen = self._tail + output
        self._tail = seen[1 - len(_ALTERNATE_ON) :]
        on, off = seen.rfind(_ALTERNATE_ON), seen.rfind(_ALTERNATE_OFF)
        if on != off:
            self._alternate = on > off

    def undo(self) -> bytes:
        """Control sequences that bring the terminal back to its ordinary modes."""
        return (_ALTERNATE_OFF if self._alternate else b"") + _ORDINARY
