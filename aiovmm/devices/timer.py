"""How a device asks to be called later. The event loop's own `call_later` fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["LONGEST_WAIT", "CallLater", "Timer"]

LONGEST_WAIT = 10.0
"""Seconds that a clock of dates waits at most before it looks again: timers go by a clock that nobody sets, and it by one that
may be. So an alarm that a step of the host's clock has made due comes that late at most."""


class Timer(Protocol):
    """A call to come."""

    def cancel(self) -> None:
        """It shall not come. Idempotent."""


CallLater = Callable[[float, Callable[[], None]], Timer]
"""`call_later(delay in seconds, callback)`."""
