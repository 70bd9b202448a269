"""Waiting for what a process of its own brings about."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["TIME", "until"]

TIME = 60  # seconds


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIME
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
