"""How a device asks to be called later. The event loop's own `call_later` fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["CallLater", "Timer"]


class Timer(Protocol):
    """A call to come."""

    def cancel(self) -> None:
        """It shall not come. Idempotent."""


CallLater = Callable[[float, Callable[[], None]], Timer]
"""`call_later(delay in seconds, callback)`."""
