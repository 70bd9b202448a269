"""A rate limit at work, shared by whatever queues stand behind it: of one device, or of all devices of a group.

Native code counts an allowance down as it takes requests, and leaves the rest in the ring when nothing is left. The queue then
waits here, in a line: whoever is let through goes to its end afterwards, so none of them takes all that there is.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from aiovmm.errors import UsageError
from aiovmm.native import ffi, owners

if TYPE_CHECKING:
    from aiovmm.config import RateLimit
    from aiovmm.devices.limits.bucket import Bucket

__all__ = ["Gate", "Limiter"]


class Limiter:
    """Without a limit, which costs next to nothing, until `set` gives it one; at any time, on the event loop's thread."""

    def __init__(self, limit: RateLimit | None = None) -> None:
        self.limit: RateLimit | None = None
        self._users: list[Any] = []
        self._allowance: Any = ffi.NULL
        self._ops: Bucket
        self._bytes: Bucket
        self._line: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        if limit is not None:
            self.set(limit)

    def attach(self, user: Any) -> None:
        """`user`, a native structure with a field `allowance`, stands behind this limit from now on."""
        self._users.append(user)
        owners.link(user, allowance=self._allowance)

    def detach(self, user: Any) -> None:
        """It does not any more."""
        self._users = [other for other in self._users if other is not user]
        owners.link(user, allowance=ffi.NULL)

    def set(self, limit: RateLimit | None) -> None:
        """From now on, with full buckets. Who waits is let through as the new limit has it.
        Raises UsageError for what is none, and nothing was changed."""
        if limit is not None:
            self._fill(limit)
        else:
            self._allowance = ffi.NULL
        self.limit = limit
        for user in self._users:
            owners.link(user, allowance=self._allowance)
        if self._line:
            self._rearm()

    def _fill(self, limit: RateLimit) -> None:
        from aiovmm.config import RateLimit  # for who limits
        from aiovmm.devices.limits.bucket import Bucket

        if not isinstance(limit, RateLimit):
            raise UsageError(f"rate_limit = {limit!r}: a RateLimit, or None")
        now = time.monotonic_ns()
        self._ops = Bucket(limit.ops_size, limit.ops_refill_time, limit.ops_one_time_burst, now)
        self._bytes = Bucket(limit.bw_size, limit.bw_refill_time, limit.bw_one_time_burst, now)
        self._allowance = ffi.new("struct avmm_allowance *", (self._ops.full, self._bytes.full))

    def open(self) -> bool:
        """Whether one who has not waited may take something now: not before those who have."""
        return self.limit is None or (not self._line and self.left())

    def left(self) -> bool:
        """Whether something may be taken now."""
        if self.limit is None:
            return True
        now, allowance = time.monotonic_ns(), self._allowance
        allowance.ops = self._ops.refilled(allowance.ops, now)
        allowance.bytes = self._bytes.refilled(allowance.bytes, now)
        return bool(allowance.ops > 0 and allowance.bytes > 0)

    async def wait(self) -> None:
        """Until the caller is the first in the line, and something may be taken."""
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        if self._timer is None:
            self._rearm()
        try:
            await turn
        finally:
            if turn in self._line:
                self._line.remove(turn)
            if not self._line and self._timer is not None:  # it may be days off, and would keep all of this until then
                self._timer.cancel()
                self._timer = None

    def _rearm(self) -> None:
        """See again when enough for the next one has come together."""
        if self._timer is not None:
            self._timer.cancel()
        delay = 0
        if not self.left():
            delay = max(self._ops.wait(self._allowance.ops), self._bytes.wait(self._allowance.bytes))
        self._timer = asyncio.get_running_loop().call_later(delay / 1e9, self._let_one_through)

    def _let_one_through(self) -> None:
        """And look at the next one when that has taken what it wants."""
        self._timer = None
        if not self._line:
            return
        if self.left():
            turn = self._line.pop(0)
            if not turn.done():
                turn.set_result(None)
        self._rearm()


class Gate:
    """One queue's way past a limiter: its turns ask `open`, and it waits when the answer is no."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._let_through = False

    def open(self) -> bool:
        """Whether the turn may take something. Native code stops by itself when nothing is left."""
        if self._let_through:
            self._let_through = False
            return self._limiter.left()
        return self._limiter.open()

    async def wait(self) -> None:
        """Until the next turn may. At once if it may now."""
        if not self._limiter.open():
            await self._limiter.wait()
            self._let_through = True
