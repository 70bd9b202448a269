"""Locks that tell the living from the dead: the kernel lets go of them with the process, however that ends (flock(2))."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["OF_DIRECTORY", "OF_FILE", "flocked", "sweep"]

OF_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
OF_FILE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
"""How what is locked is opened: some network file systems want it to be one that may be written."""


@contextmanager
def flocked(path: str | os.PathLike[str], how: int, flags: int = OF_DIRECTORY) -> Iterator[bool]:
    """What is at `path` is locked meanwhile. Whether it is: with LOCK_NB somebody else may have it. Raises OSError."""
    fd = os.open(path, flags, 0o600)
    try:
        try:
            fcntl.flock(fd, how)
            is_locked = True
        except BlockingIOError:
            is_locked = False
        yield is_locked
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked meanwhile may have it open yet
        os.close(fd)


def sweep(paths: Iterable[Path], remove: Callable[[Path], object], flags: int = OF_DIRECTORY | os.O_NOFOLLOW) -> None:
    """Remove those of `paths` that nobody has locked: they are of processes that are gone. What cannot be removed stays."""
    for path in paths:
        with suppress(OSError), flocked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, flags) as is_left:
            if is_left:
                remove(path)
