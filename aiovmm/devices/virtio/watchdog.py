"""The watchdog: a guest that has begun to ping it, and then does not for some time, hangs.

The device is the reference monitor's, and crosvm's: virtio id 35, one queue of buffers that the driver lends for writing;
each that is returned, with a 1 in its first byte, is a ping. Time in which the guest is paused, or stands still for a snapshot,
does not count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from aiovmm.config import WatchdogConfig
from aiovmm.errors import ChainError
from aiovmm.runtime.plain import Fields, State
from aiovmm.virtqueue import Queue, VirtioDevice

__all__ = ["INTERVAL", "TIMEOUT", "WatchdogDevice"]

INTERVAL = 15.0
"""Seconds between two pings of the driver."""
TIMEOUT = 20.0
"""Seconds after a ping until the guest is taken to hang."""
_TICK = 2.5
_TICKS = round(TIMEOUT / _TICK)


class WatchdogDevice(VirtioDevice):
    """`silent` is called once each time that no ping has come for TIMEOUT; `runs` says whether the guest runs now."""

    device_id = 35
    name = "watchdog"
    queue_sizes = (8,)

    def __init__(self, silent: Callable[[], None], runs: Callable[[], bool], *, tick: float = _TICK) -> None:
        self._silent = silent
        self._runs = runs
        self._tick = tick
        self._left = 0  # ticks until it is silent; 0: no ping yet, or it has been told
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def from_config(cls, config: WatchdogConfig, silent: Callable[[bool], None], runs: Callable[[], bool]) -> Self:
        """`silent` is told whether the guest is to be reset."""
        return cls(lambda: silent(config.resets), runs)

    async def run(self, queues: list[Queue], features: int) -> None:
        """Take pings. Raises ChainError for a buffer without room."""
        if self._left:
            self._wait()  # as it was saved
        async for chain in queues[0]:
            if chain.readable_size or not chain.room:
                raise ChainError("a ping has a buffer to write to, and nothing to read", chain.head)
            chain.write(b"\x01")
            queues[0].push(chain)
            queues[0].flush()
            self._left = _TICKS
            self._wait()
            del chain

    def reset(self) -> None:
        """A driver that lets go of it in good order has nothing to fear."""
        self._left = 0
        self._end_timer()

    async def close(self) -> None:
        """No more of it."""
        self._end_timer()

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick, self._ticked)

    def _ticked(self) -> None:
        self._timer = None
        if not self._left:
            return
        if self._runs() and not self.suspending:
            self._left -= 1
        if self._left:
            self._wait()
        else:
            self._silent()

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def save(self) -> State:
        """How long it would still wait."""
        return {"left": self._left}

    def load(self, state: State) -> None:
        """Put it back, to go on when the driver's queue is served. Raises SnapshotError."""
        fields = Fields(state, "watchdog")
        left = fields.number("left", 0, _TICKS)
        fields.end()
        self._left = left
