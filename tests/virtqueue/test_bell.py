"""Kick eventfds that queues share: each is served for its own kicks, none misses one."""

from __future__ import annotations

import asyncio
import os
import random
import select
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.native import ffi
from aiovmm.virtqueue.batch import Batch
from aiovmm.virtqueue.bell import BURST, QUEUES_A_BELL, REST, Bell, distinct
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.features import EVENT_IDX, RING_FEATURES
from aiovmm.virtqueue.harness import Harness
from aiovmm.virtqueue.queue import Queue
from aiovmm.virtqueue.serving import Next
from tests.limits import HANGS

QUEUES = QUEUES_A_BELL + 2


class Many(VirtioDevice):
    """Returns what it gets; the queues are served in three ways."""

    device_id = 4
    name = "many"
    queue_sizes = (16,) * QUEUES

    def __init__(self) -> None:
        self.turns = [0] * QUEUES
        self.serves: list[Callable[[Queue], object]] = []

    async def run(self, queues: list[Queue], features: int) -> None:
        ways = (self.by_chain, self.by_turn, self.in_pairs)
        async with asyncio.TaskGroup() as group:
            for queue in queues:
                group.create_task(ways[queue.index % 3](queue))

    async def by_chain(self, queue: Queue) -> None:
        async for chain in queue:
            self.turns[queue.index] += 1
            queue.push(chain)

    async def by_turn(self, queue: Queue) -> None:
        def turn() -> Next:
            self.turns[queue.index] += 1
            chain = queue.pop()
            if chain is None:
                return Next.KICK
            queue.push(chain)
            return Next.TURN

        await queue.serve(turn)

    async def in_pairs(self, queue: Queue) -> None:
        """Waits until there are two, and puts back the one that does not suffice."""
        batch, heads, lengths = Batch(2, 8), ffi.new("uint16_t[]", 2), ffi.new("uint32_t[]", 2)
        while True:
            count = queue.pop_batch(batch)
            if count == 2:
                self.turns[queue.index] += 1
                heads[0], heads[1] = batch.chains[0].head, batch.chains[1].head
                queue.push_many(heads, lengths, 2)
            else:
                queue.put_back_batch(count)
                await queue.wait(more_than=count)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANGS):
        while not condition():  # noqa: ASYNC110 - what is waited for is in a ring
            await asyncio.sleep(0)


async def test_a_kick_is_a_turn_of_the_queue_that_was_kicked() -> None:
    device = Many()
    async with Harness(device) as h:
        assert len(set(h._fds)) == 2
        await asyncio.sleep(0.01)
        before = list(device.turns)
        for _ in range(3):
            h.queues[1].add([b"x"])
            h.queues[1].kick()
            await until(lambda: bool(h.queues[1].poll()))
        assert [n for n, (a, b) in enumerate(zip(before, device.turns, strict=True)) if a != b] == [1]
        kicks = [c.kicks for c in h.runner.counters()]
        assert kicks[1] == sum(kicks) > 0, "one that comes while it is served is none"


async def test_a_kick_for_nothing_is_nobodys_turn() -> None:
    device = Many()
    async with Harness(device) as h:
        await asyncio.sleep(0.01)
        before = list(device.turns)
        for queue in h.queues:
            queue.kick(force=True)
        await asyncio.sleep(0.01)
        assert device.turns == before


@given(st.integers(), st.sampled_from([RING_FEATURES, RING_FEATURES & ~EVENT_IDX]))
def test_no_kick_is_lost_among_queues_that_share(seed: int, features: int) -> None:
    asyncio.run(play(random.Random(seed), features))


async def play(chance: random.Random, features: int) -> None:
    async with Harness(Many(), features=features) as h:
        offered, back = [0] * QUEUES, [0] * QUEUES
        for _ in range(chance.randrange(1, 40)):
            for number in chance.sample(range(QUEUES), chance.randrange(1, QUEUES)):
                for _ in range(2):  # some take them in pairs
                    if h.queues[number].outstanding < 16:
                        h.queues[number].add([b"x"])
                        offered[number] += 1
                        if chance.random() < 0.5:
                            h.queues[number].kick()
                h.queues[number].kick()
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            for number, queue in enumerate(h.queues):
                back[number] += len(queue.poll())

        def all_back() -> bool:
            for number, queue in enumerate(h.queues):
                back[number] += len(queue.poll())
            return all(b + (number % 3 == 2) >= o for number, (b, o) in enumerate(zip(back, offered, strict=True)))

        await until(all_back)


async def test_the_loop_looks_while_somebody_listens() -> None:
    class Listener:
        heard = 0

        def due(self) -> bool:
            return True

        def kicked(self) -> bool:
            self.heard += 1
            return False

    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    bell, a, b = Bell(fd), Listener(), Listener()
    bell.join(a)
    bell.join(b)
    os.eventfd_write(fd, 1)
    await until(lambda: bool(a.heard))
    bell.leave(a)
    os.eventfd_write(fd, 1)
    await until(lambda: b.heard == 2)
    bell.leave(b)
    os.eventfd_write(fd, 1)
    await asyncio.sleep(0.01)
    assert (a.heard, b.heard) == (1, 2)
    os.close(fd)


async def test_who_kicks_for_nothing_without_end_is_listened_to_now_and_then_and_still_served() -> None:
    class Listener:
        asked = heard = 0
        waits = False

        def due(self) -> bool:
            self.asked += 1
            return self.waits

        def kicked(self) -> bool:
            self.heard += 1
            return False

    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    bell, listener, loop = Bell(fd), Listener(), asyncio.get_running_loop()
    bell.join(listener)
    began = loop.time()
    for _ in range(20 * BURST):
        os.eventfd_write(fd, 1)
        await asyncio.sleep(0)
    assert BURST <= listener.asked <= BURST + (loop.time() - began) / REST + 2
    for _ in range(3):
        heard, listener.waits = listener.heard, True
        os.eventfd_write(fd, 1)
        await until(lambda heard=heard: listener.heard > heard)  # type: ignore[misc]
        listener.waits = False
        os.eventfd_write(fd, 1)
        await asyncio.sleep(0)
    bell.leave(listener)
    os.close(fd)


async def test_kicks_that_are_for_something_are_all_heard() -> None:
    """Also of a driver half of whose kicks are not."""

    class Listener:
        waits = False
        heard = 0

        def due(self) -> bool:
            return self.waits

        def kicked(self) -> bool:
            self.heard += 1
            return False

    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    bell, listener = Bell(fd), Listener()
    bell.join(listener)
    for number in range(8 * BURST):
        listener.waits = number % 2 == 0
        os.eventfd_write(fd, 1)
        await until(lambda: not _signalled(fd))
    assert listener.heard == 4 * BURST
    bell.leave(listener)
    os.close(fd)


def _signalled(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@pytest.mark.parametrize(("queues", "eventfds"), [(0, 0), (1, 1), (4, 1), (5, 2), (33, 9)])
def test_few_queues_to_an_eventfd(queues: int, eventfds: int) -> None:
    made = iter(range(100))
    fds = distinct(queues, lambda: next(made))
    assert len(fds) == queues
    assert len(set(fds)) == eventfds
    assert max((fds.count(fd) for fd in fds), default=0) <= QUEUES_A_BELL
