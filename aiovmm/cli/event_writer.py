"""Where events are written to: a descriptor whose reader may be slow, leave, or come later."""

from __future__ import annotations

import errno
import os

from aiovmm.cli.messages import say

__all__ = ["EventWriter"]


class EventWriter:
    """Writes to `fd`, and waits for nobody. Nothing is kept for who does not read, but the rest of what has been begun; who reads
    again gets whole events."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self._said = False  # that it cannot be written

    def write(self, data: bytes) -> None:
        """One event, now, or never; what is left of the one before it first. Where that cannot be, a word on stderr, once until
        it can be again; not of a reader that has left, or is slow."""
        left = self._rest + data
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as exc:
            begun = len(left) < len(data)
            self._rest = left if begun else left[: -len(data)]
            if exc.errno == errno.EPIPE:
                self._rest = b""
            elif exc.errno != errno.EAGAIN and not self._said:
                self._said = True
                say(f"events cannot be written: {exc.strerror}")
        else:
            self._rest, self._said = b"", False
