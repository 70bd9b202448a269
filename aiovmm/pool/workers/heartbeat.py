"""Whether a worker still answers, for whoever waits for nothing but its guests: it is asked all the time.

One that was stopped (SIGSTOP, a debugger), or whose loop hangs in the host's kernel, says nothing of it: its guests would stand
still, and look alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Heartbeat"]

_BEATS = 6


class Heartbeat:
    """`ask` puts the question, and gives the future of the answer; `late` is called once, when none has come for `patience`
    seconds. A sixth of those are between two looks, and looks are what counts: while this loop, or this machine, stands still
    itself, there are none."""

    def __init__(self, ask: Callable[[], asyncio.Future[object]], late: Callable[[], object], patience: float) -> None:
        self._ask = ask
        self._late = late
        self._each = patience / _BEATS
        self._in_vain = 0
        self._answer: asyncio.Future[object] | None = None
        self._timer = asyncio.get_running_loop().call_later(self._each, self._beat)

    def _beat(self) -> None:
        if self._answer is None or self._answer.done():
            self._in_vain, self._answer = 0, self._ask()
        else:
            self._in_vain += 1
        if self._in_vain < _BEATS:
            self._timer = asyncio.get_running_loop().call_later(self._each, self._beat)
        else:
            self._late()

    def close(self) -> None:
        """Ask no more. Idempotent."""
        self._timer.cancel()
