"""Where events and log lines are written to: a descriptor whose reader may be slow, leave, or come later."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from aiovmm.cli.messages import say
from aiovmm.runtime.nowait import write_now

__all__ = ["RecordWriter"]


class RecordWriter:
    """Writes to `fd`, whatever that is and whoever shares it, and waits for nobody. Nothing is kept for who does not read, but
    the rest of what has been begun; who reads again gets whole records. `what` they are is said where they cannot be written."""

    def __init__(self, fd: int, what: str = "events", tell: Callable[[str], None] = say) -> None:
        self._fd = fd
        self._what = what
        self._tell = tell
        self._write = os.write if stat.S_ISREG(os.fstat(fd).st_mode) else write_now
        self._rest = b""
        self._said = False  # that it cannot be written

    def write(self, data: bytes) -> None:
        """One record, now, or never; what is left of the one before it first. Where that cannot be, a word on stderr, once until
        it can be again; not of a reader that has left, or is slow."""
        left = self._rest + data
        try:
            while left:
                left = left[self._write(self._fd, left) :]
        except OSError as exc:
            begun = len(left) < len(data)
            self._rest = left if begun else left[: -len(data)]
            if exc.errno == errno.EPIPE:
                self._rest = b""
            elif exc.errno != errno.EAGAIN and not self._said:
                self._said = True
                self._tell(f"{self._what} cannot be written: {exc.strerror}")
        else:
            self._rest, self._said = b"", False
