"""The device of virtio-rtc: one queue of requests, each answered at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiovmm.devices.virtio.rtc.protocol import REQUEST_LIMIT, answer
from aiovmm.runtime.plain import Fields, State
from aiovmm.virtqueue import Queue, VirtioDevice

__all__ = ["RtcDevice"]


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
        """Answer each, as far as there is room for it. What a request has beyond its size is nobody's."""
        (queue,) = queues
        async for chain in queue:
            chain.write(answer(chain.read(min(chain.unread, REQUEST_LIMIT)), chain.room, self._clock_ns))
            queue.push(chain)
            queue.flush()  # who asks for the time waits
            del chain
