"""Fixtures of the ring tests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest

from aiovmm.memory import GuestMemory
from aiovmm.virtqueue.driver import Arena, DriverQueue
from tests.virtqueue.live import Live


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([(0, 1 << 20)])
    yield memory
    memory.close()


@pytest.fixture
async def live(memory: GuestMemory) -> AsyncIterator[Live]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    driver = DriverQueue(memory, Arena(0x1000, memory.size - 0x1000), lambda: os.eventfd_write(fd, 1), size=128)
    live = Live(memory, fd, driver)
    yield live
    for queue in live.queues:
        queue.close()
    os.close(fd)
