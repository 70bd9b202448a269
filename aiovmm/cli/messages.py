"""What the command says of its own, on standard error. What cannot be said holds nobody up: it waits a moment for who reads, and
where there is an event loop, as that of guests which run, the loop goes on meanwhile."""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from aiovmm.errors import readable
from aiovmm.runtime.nowait import write_now

if TYPE_CHECKING:
    from aiovmm.runtime.hands import Hands

__all__ = ["say", "settle"]

_PATIENCE = 0.25  # seconds for a reader that does not read, or storage that does not answer
_MOST = 16  # words that wait for storage
_LOOK = 0.01  # seconds between two looks of a loop whether it does


def say(text: str, *, below: bool = False) -> None:
    """One line for the person who started it, whatever is in the names that it quotes; `below` what a guest left of one."""
    line = readable(text)
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # full, closed, or nobody reads it
            _print("\r\n" * below + f"aiovmm: {line}\n")


def settle() -> None:
    """What was said on a loop that has ended is said now, or never."""
    _unsaid.settle()
    if _hands.cache_info().currsize:
        with suppress(OSError, RuntimeError):
            _hands().submit(os.fstat, 2).result(_PATIENCE)  # after all that was said before


def _print(text: str) -> None:
    try:
        fd = sys.stderr.fileno()
        is_file = stat.S_ISREG(os.fstat(fd).st_mode)
    except (OSError, ValueError):  # it is nothing of the system's
        print(text, end="", file=sys.stderr, flush=True)
        return
    sys.stderr.flush()
    data = text.encode(sys.stderr.encoding, "backslashreplace")
    if is_file:
        _write_to_file(fd, data)
    else:
        _unsaid.say(fd, data)


def _write_to_file(fd: int, data: bytes) -> None:
    """In a thread: its storage may stand still. Raises OSError."""
    hands = _hands()
    if hands.waiting >= _MOST:
        return
    try:
        written = hands.submit(_write_all, fd, data)
    except RuntimeError:  # no thread can be had
        _write_all(fd, data)
        return
    if _running_loop() is None:
        written.result(_PATIENCE)


@cache
def _hands() -> Hands:
    from aiovmm.runtime.hands import Hands  # for whose standard error is a file

    return Hands(1, "aiovmm: stderr")


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class _Unsaid:
    """What nobody has read yet. Said on a loop, which looks again, or by threads, which wait for the reader: of any of them."""

    def __init__(self) -> None:
        self._lock = (
            threading.Lock()
        )  # of what follows, and of writing it: else two write the same; held while nobody waits
        self._fd = -1
        self._left = b""
        self._end = 0.0  # of the patience with it

    def say(self, fd: int, data: bytes) -> None:
        """After what is left of what was said before."""
        loop = _running_loop()
        with self._lock:
            if self._left and time.monotonic() >= self._end:
                self._left = b""
            is_first = not self._left
            if is_first:
                self._end = time.monotonic() + _PATIENCE
            self._fd = fd
            self._left += data
        if loop is None:
            self.settle()
        elif is_first:  # else whoever has said what is left looks after all of it
            self._look(loop)

    def settle(self) -> None:
        """Wait for the reader."""
        while self._write():
            poller = select.poll()
            poller.register(self._fd, select.POLLOUT)
            poller.poll(max(0.0, self._end - time.monotonic()) * 1000)

    def _look(self, loop: Any) -> None:
        if self._write():
            loop.call_later(_LOOK, self._look, loop)

    def _write(self) -> bool:
        """As much as is taken at once; whether there is more that is waited for."""
        with self._lock:
            try:
                while self._left:
                    self._left = self._left[write_now(self._fd, self._left) :]
            except BlockingIOError:
                if time.monotonic() >= self._end:
                    self._left = b""
            except OSError:
                self._left = b""
            return bool(self._left)


def _running_loop() -> Any:
    """None where there is none, as before anybody has imported asyncio, which is not done here for that."""
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


_unsaid = _Unsaid()
