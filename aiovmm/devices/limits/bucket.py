"""A token bucket. Pure: it is told the time, and how much is left is kept elsewhere, where native code counts it down."""

from __future__ import annotations

__all__ = ["UNLIMITED", "Bucket"]

UNLIMITED = 1 << 62
_MS = 1_000_000  # nanoseconds
_SLICE = 5 * _MS  # what is let through at once after a wait: a limit costs the loop no more than 200 wake-ups a second


class Bucket:
    """Of `size` tokens, filled anew in `refill_time` milliseconds, with `burst` more at its first use. Size 0: without end.

    `now` is in nanoseconds of any clock that never goes back. What is left may be negative: that much was taken ahead.
    """

    def __init__(self, size: int, refill_time: int, burst: int, now: int) -> None:
        self.full = size + burst if size else UNLIMITED
        self._size = size
        self._period = refill_time * _MS
        self._since = now

    def refilled(self, left: int, now: int) -> int:
        """What is left at `now` of what was left at the last call. A burst is not given twice."""
        if not self._size:
            return UNLIMITED
        tokens = (now - self._since) * self._size // self._period
        self._since += tokens * self._period // self._size
        return max(left, min(left + tokens, self._size))

    def wait(self, left: int) -> int:
        """Nanoseconds until a slice may go: at least one token, as much as 5 ms bring, or the whole bucket if that is less."""
        if not self._size:
            return 0
        aim = max(1, min(self._size, self._size * _SLICE // self._period))
        return max(0, -(-(aim - left) * self._period // self._size))
