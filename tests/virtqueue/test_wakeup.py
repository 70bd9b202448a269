"""A driver in a thread of its own, as a vCPU is, against a device in the loop: no kick and no interrupt is ever lost."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Awaitable, Callable

import pytest

from aiovmm.memory import GuestMemory
from aiovmm.virtqueue.driver import Arena, DriverQueue
from aiovmm.virtqueue.features import EVENT_IDX, INDIRECT_DESC, VERSION_1
from aiovmm.virtqueue.queue import Queue
from aiovmm.virtqueue.serving import Next
from tests.limits import HANGS

REQUESTS = 4000


class ThreadLine:
    """An interrupt that wakes a thread."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def pulse(self) -> None:
        self.event.set()


def drive(driver: DriverQueue, line: ThreadLine, seed: int) -> int:
    """Send REQUESTS in bursts, sleeping whenever there is nothing to do; how many came back right."""
    rand = random.Random(seed)
    sent = done = right = 0
    while done < REQUESTS:
        for _ in range(min(rand.randint(1, 8), len(driver.free) // 2, REQUESTS - sent)):
            driver.add([b"%d" % sent], [8], indirect=rand.random() < 0.5)
            sent += 1
            if rand.random() < 0.3:
                driver.kick()
        driver.kick()
        for used in driver.poll():
            right += used.data == b"%d" % done
            done += 1
        if sent < REQUESTS and len(driver.free) >= 2 and rand.random() < 0.5:
            continue
        line.event.clear()
        if driver.outstanding and driver.enable_interrupts() and not line.event.wait(timeout=HANGS):
            break
        driver.disable_interrupts()
    return right


async def by_chain(queue: Queue) -> None:
    async for chain in queue:
        chain.write(chain.read_all())
        queue.push(chain)


async def by_turn(queue: Queue) -> None:
    def turn() -> Next:
        for _ in range(4):
            chain = queue.pop()
            if chain is None:
                queue.flush()
                return Next.KICK
            chain.write(chain.read_all())
            queue.push(chain)
        return Next.TURN

    await queue.serve(turn)


@pytest.mark.parametrize("serve", [by_chain, by_turn])
@pytest.mark.parametrize("size", [2, 16])
@pytest.mark.parametrize("features", [VERSION_1 | INDIRECT_DESC, VERSION_1 | INDIRECT_DESC | EVENT_IDX])
async def test_a_thread_is_answered_to_the_end(
    memory: GuestMemory, size: int, features: int, serve: Callable[[Queue], Awaitable[None]]
) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    driver = DriverQueue(
        memory, Arena(0x1000, 0x80000), lambda: os.eventfd_write(fd, 1), size=size, features=features, start=65000
    )
    line = ThreadLine()
    queue = Queue.activate(
        driver.config(), memory, index=0, features=features, kick_fd=fd, interrupt=line, position=driver.position
    )

    device = asyncio.ensure_future(serve(queue))
    try:
        assert await asyncio.to_thread(drive, driver, line, size) == REQUESTS
    finally:
        device.cancel()
        await asyncio.wait([device])
        queue.close()
        os.close(fd)
