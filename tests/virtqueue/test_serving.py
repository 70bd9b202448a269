"""A queue served by a plain function, from the loop's callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiovmm.errors import ChainError, StateError
from aiovmm.runtime.tasks import bury
from aiovmm.virtqueue.batch import Batch
from aiovmm.virtqueue.queue import Queue
from aiovmm.virtqueue.serving import Next
from tests.virtqueue.live import Live, turn


class Device:
    """Takes at most `most` chains a turn, in order."""

    def __init__(self, queue: Queue, most: int = 4) -> None:
        self.queue = queue
        self.most = most
        self.turns = 0
        self.seen: list[bytes] = []

    def __call__(self) -> Next:
        self.turns += 1
        for _ in range(self.most):
            chain = self.queue.pop()
            if chain is None:
                return Next.KICK
            data = chain.read_all()
            self.queue.push(chain)
            if data == b"return":
                return Next.RETURN
            if data == b"raise":
                raise ChainError("a test", chain.head)
            self.seen.append(data)
        return Next.TURN


@asynccontextmanager
async def served(live: Live, most: int = 4) -> AsyncIterator[tuple[Device, asyncio.Task[None]]]:
    queue = live.activate()
    device = Device(queue, most)
    task = asyncio.create_task(queue.serve(device))
    await turn()
    yield device, task
    task.cancel()
    await asyncio.wait([task])


async def test_a_kick_is_a_turn(live: Live) -> None:
    async with served(live) as (device, task):
        before = device.turns
        for number in range(3):
            live.driver.add([b"%d" % number])
            assert live.driver.kick()
            await turn()
            assert device.turns == before + number + 1
        assert device.seen == [b"0", b"1", b"2"]
        assert not task.done()


async def test_chains_that_were_there_before_need_no_kick(live: Live) -> None:
    live.driver.add([b"x"])
    async with served(live) as (device, _):
        assert device.seen == [b"x"]


async def test_the_loop_has_its_turn_between_two_of_the_device(live: Live) -> None:
    async with served(live) as (device, _):
        for number in range(40):
            live.driver.add([b"%d" % number])
        live.driver.kick()
        seen = []
        while len(device.seen) < 40:
            await asyncio.sleep(0)
            seen.append(len(device.seen))
        assert {4, 8, 12} <= set(seen)


async def test_a_chain_that_comes_behind_the_turn_needs_no_kick(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver adds it after the ring was seen empty, and before kicks are asked for."""
    async with served(live) as (device, _):
        end_turn, late = device.queue.end_turn, [b"late"]

        def racing() -> bool:
            if late:
                live.driver.add([late.pop()])
                assert not live.driver.kick()
            return end_turn()

        monkeypatch.setattr(device.queue, "end_turn", racing)
        live.driver.add([b"first"])
        live.driver.kick()
        await turn()
        assert device.seen == [b"first", b"late"]


async def test_a_turn_may_give_control_back(live: Live) -> None:
    async with served(live) as (device, task):
        live.driver.add([b"return"])
        live.driver.kick()
        await turn()
        assert task.done()
        assert task.exception() is None
        again = asyncio.create_task(device.queue.serve(device))
        live.driver.add([b"x"])
        live.driver.kick()
        await turn()
        assert device.seen == [b"x"]
        again.cancel()
        await asyncio.wait([again])


async def test_what_a_turn_raises_is_the_servers(live: Live) -> None:
    async with served(live) as (device, task):
        live.driver.add([b"raise"])
        live.driver.add([b"never seen"])
        live.driver.kick()
        await turn()
        assert isinstance(task.exception(), ChainError)
        assert device.seen == []


async def test_a_server_that_was_cancelled_is_called_no_more(live: Live) -> None:
    async with served(live) as (device, task):
        task.cancel()
        await asyncio.wait([task])
        turns = device.turns
        live.driver.add([b"x"])
        live.driver.kick(force=True)
        await turn()
        assert device.turns == turns


async def test_closing_ends_the_server(live: Live) -> None:
    async with served(live) as (device, task):
        device.queue.close()
        await turn()
        assert isinstance(task.exception(), StateError)


async def test_one_server_at_a_time_and_no_waiter_beside_it(live: Live) -> None:
    async with served(live) as (device, _):
        for second in (device.queue.serve(device), device.queue.wait()):
            with pytest.raises(StateError):
                await second


async def test_a_disabled_queue_has_no_turn_with_chains(live: Live) -> None:
    config = live.driver.config()
    config.ready = False
    queue = live.activate(config)
    batch = Batch(4, 16)
    taken = []

    def take() -> Next:
        taken.append(queue.pop_batch(batch))
        return Next.KICK

    task = asyncio.create_task(queue.serve(take))
    live.driver.add([b"x"])
    live.driver.kick(force=True)
    await turn()
    assert not any(taken)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


def _waits(queue: Queue) -> Coroutine[Any, Any, Any]:
    return anext(aiter(queue))


def _serves(queue: Queue) -> Coroutine[Any, Any, Any]:
    return queue.serve(Device(queue))


@pytest.mark.parametrize("begins", [_waits, _serves])
def test_a_queue_lets_go_of_guest_memory_also_when_its_loop_is_closed(
    live: Live, begins: Callable[[Queue], Coroutine[Any, Any, Any]]
) -> None:
    loop = asyncio.new_event_loop()

    async def begin() -> tuple[Queue, asyncio.Task[Any]]:
        queue = live.activate()
        task = asyncio.create_task(begins(queue))
        await turn()
        return queue, task

    queue, task = loop.run_until_complete(begin())
    loop.close()
    native = queue.native
    queue.close()
    assert native.size == 1, "it points at nothing of the guest's"
    bury(task)
