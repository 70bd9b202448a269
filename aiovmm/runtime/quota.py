"""How often a thing is told that a guest may cause as fast as it likes. Pure: time is a parameter."""

from __future__ import annotations

__all__ = ["BURST", "SECONDS_EACH", "Quota"]

BURST = 32
"""As many are told at once."""

SECONDS_EACH = 60.0
"""Then one in this time."""


class Quota:
    """A bucket of `burst` that fills by one in `SECONDS_EACH`. It knows nothing of resets: who is told no more often after one
    cannot be flooded by a guest that resets itself."""

    def __init__(self, burst: int = BURST) -> None:
        self._burst = burst
        self._left = float(burst)
        self._since: float | None = None
        self._untold = 0

    def take(self, now: float) -> int | None:
        """One more at `now`, in seconds by a clock that never goes back: None if it is not to be told, else how many went untold
        since the one before."""
        if self._since is not None:
            self._left = min(self._burst, self._left + (now - self._since) / SECONDS_EACH)
        self._since = now
        if self._left < 1:
            self._untold += 1
            return None
        self._left -= 1
        untold, self._untold = self._untold, 0
        return untold

    @property
    def spent(self) -> bool:
        """Whether the next one, if it comes soon, is not told."""
        return self._left < 1
