"""A queue on the event loop, and its driver's simulator."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiovmm.memory import GuestMemory
from aiovmm.virtqueue.config import QueueConfig
from aiovmm.virtqueue.driver import DriverQueue
from aiovmm.virtqueue.features import RING_FEATURES
from aiovmm.virtqueue.queue import Queue


@dataclass
class Live:
    memory: GuestMemory
    fd: int
    driver: DriverQueue
    queues: list[Queue] = field(default_factory=list)

    def activate(self, config: QueueConfig | None = None, features: int = RING_FEATURES) -> Queue:
        queue = Queue.activate(
            config or self.driver.config(),
            self.memory,
            index=0,
            features=features,
            kick_fd=self.fd,
            interrupt=self.driver.irq,
        )
        self.queues.append(queue)
        return queue


async def turn() -> None:
    """Let everything that is ready in the loop run, file descriptors included."""
    for _ in range(5):
        await asyncio.sleep(0)
