"""One user at a time: an flock whose file says who holds it."""

from __future__ import annotations

import fcntl
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Callable
from types import TracebackType


class HostLock:
    """Holds `path` locked while entered; entering again from the same object is free.

    The kernel drops the lock with its holder, so a killed one leaves nothing behind. `say` gets one line if it has to
    wait: who holds it, and since when.
    """

    def __init__(self, path: pathlib.Path, say: Callable[[str], None]) -> None:
        self._path = path
        self._say = say
        self._depth = 0
        self._fd = -1

    def __enter__(self) -> HostLock:
        if self._depth == 0:
            self._acquire()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def _acquire(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say(f"waiting for the nested host: held by {holder(self._path) or 'another process'}")
                fcntl.flock(fd, fcntl.LOCK_EX)
            os.ftruncate(fd, 0)
            os.pwrite(fd, describe_me(time.time()).encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd


def describe_me(now: float) -> str:
    command = shlex.join(["python", *sys.argv])
    return f"process {os.getpid()} ({command[:200]}) since {time.strftime('%H:%M:%S', time.localtime(now))}"


def holder(path: pathlib.Path) -> str:
    """Who holds the lock at `path`; empty if nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 4096, 0).decode(errors="replace")
    finally:
        os.close(fd)
    return ""
