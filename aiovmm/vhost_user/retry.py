"""When to try again to reach a back end that went away: bounded, ever more slowly, never at once twice."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RetryPolicy"]


@dataclass
class RetryPolicy:
    """`patience` seconds away in all, of which `left` are, pauses from `first` seconds doubling up to `longest`. Times are the
    loop's; whoever tries again counts what it waits (runtime.awake), and keeps `left` for the next loss.

    A connection counts as good once it has lived `stable` seconds. One that dies earlier (a request kills the back end
    each time it is served again) goes on with the pauses of the loss before it, and with what was left of the patience: while
    it lived it was not waited for.
    """

    patience: float = 60.0
    first: float = 0.05
    longest: float = 1.0
    stable: float = 5.0
    left: float = 0.0
    _pause: float = 0.0  # none was made yet
    _since: float | None = None  # when the present connection was made

    def connected(self, now: float) -> None:
        """There is a connection."""
        self._since = now

    def lost(self, now: float) -> None:
        """It went away."""
        lived = 0.0 if self._since is None else now - self._since
        if self._pause == 0 or lived >= self.stable:
            self.left = self.patience
            self._pause = self.first
        self._since = None

    def pause(self, left: float) -> float | None:
        """Seconds until the next attempt, if so many are left; None: give up."""
        self.left = left
        if left <= 0:
            return None
        pause, self._pause = self._pause, min(self._pause * 2, self.longest)
        return min(pause, left)
