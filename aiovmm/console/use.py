"""Whether a console can be used, and from where: what is asked by every method that reads, writes or waits."""

from __future__ import annotations

from aiovmm.errors import StateError
from aiovmm.home import HomeLoop

__all__ = ["Use"]


class Use:
    """`absent` says why there is no such console in the guest; "" if there is."""

    def __init__(self, home: HomeLoop, absent: str = "") -> None:
        self._home = home
        self._absent = absent

    def check(self) -> None:
        """Raises StateError in a thread that the console does not belong to, or if there is no such console."""
        self._home.check_thread()
        if self._absent:
            raise StateError(self._absent)

    def check_waiting(self) -> None:
        """The same for what waits: on the console's own event loop only."""
        self._home.check()
        if self._absent:
            raise StateError(self._absent)
