"""Whoever sweeps what killed processes have left may meet what has just been made, and is not locked yet."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

import pytest


def sweeps_before_it_is_locked(monkeypatch: pytest.MonkeyPatch, remove: Callable[[str], None]) -> list[str]:
    """The first that is to be locked is removed; its name is in the list then."""
    lock = fcntl.flock
    swept: list[str] = []

    def late(fd: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            swept.append(os.readlink(f"/proc/self/fd/{fd}"))
            remove(swept[0])
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    return swept
