"""Chains in many pieces of memory, taken one by one: each piece becomes an object, so there is a limit."""

from __future__ import annotations

import asyncio

import pytest

from aiovmm.errors import ChainError
from aiovmm.memory import PAGE_SIZE
from aiovmm.testing import Descriptor, Harness
from aiovmm.virtqueue import Queue, VirtioDevice
from tests.limits import HANGS
from tests.virtqueue.pieces import IOVA, OnePageManyTimes

LIMIT = 2048


class Sink(VirtioDevice):
    """Takes chains and counts their segments."""

    device_id = 42
    name = "sink"
    queue_sizes = (64,)

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def run(self, queues: list[Queue], features: int) -> None:
        async for chain in queues[0]:
            self.seen.append(len(chain.readable))
            queues[0].push(chain)


def harness(device: Sink) -> Harness:
    h = Harness(device)
    h.device_memory = OnePageManyTimes(h.memory, 0x300000, LIMIT + 1)
    return h


async def test_as_many_as_the_limit_are_taken() -> None:
    device = Sink()
    async with harness(device) as h:
        h.queues[0].add_raw([Descriptor(IOVA, LIMIT * PAGE_SIZE)])
        h.queues[0].kick()
        await h.queues[0].used()
        assert device.seen == [LIMIT]


async def test_more_break_the_device() -> None:
    device = Sink()
    async with harness(device) as h:
        h.queues[0].add_raw([Descriptor(IOVA, (LIMIT + 1) * PAGE_SIZE)])
        h.queues[0].kick()
        error = await h.broken()
        assert isinstance(error, ChainError)
        assert "pieces" in str(error)
        assert device.seen == []


@pytest.mark.parametrize(("pieces", "most"), [(LIMIT, 8), (1, 64)])
async def test_the_loop_gets_its_turn_the_sooner_the_more_pieces_there_are(pieces: int, most: int) -> None:
    device = Sink()
    async with harness(device) as h:
        q = h.queues[0]
        q.put(0, Descriptor(IOVA, pieces * PAGE_SIZE))
        for _ in range(64):
            q.offer(0)
        q.kick()
        before = steps = 0
        async with asyncio.timeout(HANGS):
            while len(device.seen) < 64:
                await asyncio.sleep(0)
                steps = max(steps, len(device.seen) - before)
                before = len(device.seen)
        assert 0 < steps <= most
