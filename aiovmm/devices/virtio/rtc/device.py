"""The device of virtio-rtc: one queue of requests, each answered at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiovmm.devices.virtio.rtc.protocol import REQUEST_LIMIT, answer
from aiovmm.errors import ChainError
from aiovmm.runtime.plain import Fields, State
from aiovmm.virtqueue import Queue, VirtioDevice

__all__ = ["RtcDevice"]

_HEAD = 8


class RtcDevice(VirtioDevice):
    """`clock_ns` is nanoseconds since the epoch. It keeps nothing, so a snapshot has nothing of it."""

    device_id = 17
    name = "rtc"
    queue_sizes = (256,)

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns

    def save(self) -> State:
        """Nothing."""
        return {}

    def load(self, state: State) -> None:
        """Raises SnapshotError."""
        Fields(state, self.name).end()

    async def run(self, queues: list[Queue], features: int) -> None:
        """Answer. Raises ChainError for a request that there is no room to answer."""
        (queue,) = queues
        async for chain in queue:
            if chain.room < _HEAD:
                raise ChainError("a request of the clock without room for an answer", chain.head)
            chain.write(answer(chain.read_all(REQUEST_LIMIT), chain.room, self._clock_ns))
            queue.push(chain)
            queue.flush()  # who asks for the time waits
            del chain
