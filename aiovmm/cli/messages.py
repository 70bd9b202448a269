"""What the command says of its own, on standard error. What cannot be said holds nobody up."""

from __future__ import annotations

import os
import select
import stat
import sys
import time
from contextlib import suppress

from aiovmm.runtime.nowait import write_now

__all__ = ["say"]

_PATIENCE = 0.25  # seconds for a reader that does not read


def say(text: str, *, below: bool = False) -> None:
    """One line for the person who started it, whatever is in the names that it quotes; `below` what a guest left of one."""
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # full, closed, or nobody reads it
            _print("\r\n" * below + f"aiovmm: {line}\n")


def _print(text: str) -> None:
    try:
        fd = sys.stderr.fileno()
        stream = not stat.S_ISREG(os.fstat(fd).st_mode)
    except (OSError, ValueError):  # it is nothing of the system's
        stream = False
    if not stream:
        print(text, end="", file=sys.stderr, flush=True)
        return
    sys.stderr.flush()
    left = text.encode(sys.stderr.encoding, "backslashreplace")
    deadline = time.monotonic() + _PATIENCE
    while left:
        try:
            left = left[write_now(fd, left) :]
        except BlockingIOError:
            _wait(fd, deadline)


def _wait(fd: int, deadline: float) -> None:
    """Raises TimeoutError."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
