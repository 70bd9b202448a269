from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable

import pytest

from aiovmm.console.input import HIGH_WATER, INPUT_LIMIT, LOW_WATER, InputQueue
from aiovmm.errors import ConsoleEnded, StateError
from tests.console.device import StubDevice
from tests.limits import HANGS


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def connected(room: int | None = 0) -> tuple[InputQueue, StubDevice]:
    queue, device = InputQueue(), StubDevice(room)
    queue.connect(device)
    return queue, device


async def test_what_the_device_does_not_take_waits_in_order() -> None:
    queue, device = connected(room=3)
    queue.put(b"hello ")
    queue.put(bytearray(b"world"))
    assert (bytes(device.received), len(queue)) == (b"hel", 8)
    device.make_room(4)
    assert bytes(device.received) == b"hello w"
    device.make_room(100)
    assert (bytes(device.received), len(queue)) == (b"hello world", 0)


async def test_input_waits_for_a_device_to_be_connected() -> None:
    queue, device = InputQueue(), StubDevice()
    queue.put(b"early")
    queue.connect(device)
    assert device.received == b"early"


async def test_writing_without_end_is_refused_and_changes_nothing() -> None:
    queue, _ = connected()
    queue.put(bytes(INPUT_LIMIT))
    with pytest.raises(StateError, match=r"await drain\(\).*send\(\)"):
        queue.put(b"x")
    assert len(queue) == INPUT_LIMIT
    with pytest.raises(StateError, match="104857600 bytes"):
        connected()[0].put(bytes(100 << 20))


async def test_drain_waits_between_the_high_and_the_low_mark() -> None:
    queue, device = connected()
    queue.put(bytes(HIGH_WATER - 1))
    await asyncio.wait_for(queue.drain(), HANGS)
    queue.put(b"x")
    drain = asyncio.create_task(queue.drain())
    device.make_room(HIGH_WATER - LOW_WATER - 1)
    await settle()
    assert not drain.done()
    device.make_room(1)
    await asyncio.wait_for(drain, HANGS)


async def test_sending_any_size_delivers_all_of_it_within_the_high_mark() -> None:
    queue, device = connected()
    data = bytes(range(256)) * 2000
    send = asyncio.create_task(queue.send(data))
    while not send.done() or len(queue):
        await settle()
        assert len(queue) <= HIGH_WATER
        device.make_room(5000)
    await send
    assert device.received == data


async def test_a_guest_that_does_not_read_costs_no_memory() -> None:
    """100 MB offered: the queue holds 64 KiB, and nothing else grows."""
    queue, _ = connected()
    offered = bytes(100_000_000)
    tracemalloc.start()
    try:
        send = asyncio.create_task(queue.send(offered))
        await settle()
        assert not send.done()
        assert len(queue) == HIGH_WATER
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    send.cancel()
    with pytest.raises(asyncio.CancelledError):
        await send


async def test_a_device_that_takes_all_at_once_leaves_the_loop_to_others() -> None:
    queue, device = connected(room=None)
    send = asyncio.create_task(queue.send(bytes(10 << 20)))
    await settle()
    assert not send.done()
    await send
    assert len(device.received) == 10 << 20


async def test_senders_take_turns() -> None:
    queue, device = connected()
    sends = [asyncio.create_task(queue.send(letter * (4 * HIGH_WATER))) for letter in (b"a", b"b", b"c")]
    for _ in range(8):
        await settle()
        device.make_room(HIGH_WATER - LOW_WATER)
    counts = {letter: device.received.count(letter) for letter in b"abc"}
    assert min(counts.values()) > HIGH_WATER
    while not all(send.done() for send in sends) or len(queue):
        device.make_room(HIGH_WATER)
        await settle()
    assert {letter: device.received.count(letter) for letter in b"abc"} == dict.fromkeys(b"abc", 4 * HIGH_WATER)


@pytest.mark.parametrize("woken_first", [False, True])
async def test_a_cancelled_sender_hands_its_turn_on(woken_first: bool) -> None:
    queue, device = connected()
    queue.put(bytes(HIGH_WATER))
    first, second = (asyncio.create_task(queue.send(text)) for text in (b"first", b"second"))
    await settle()
    if woken_first:
        device.make_room(HIGH_WATER)
        first.cancel()
    else:
        first.cancel()
        await settle()
        device.make_room(HIGH_WATER)
    await asyncio.wait_for(second, HANGS)
    device.make_room(100)
    assert first.cancelled()
    assert bytes(device.received[HIGH_WATER:]) == b"second"


@pytest.mark.parametrize("wait", [lambda queue: queue.drain(), lambda queue: queue.send(b"x")])
async def test_the_end_reaches_those_who_wait_and_those_who_come_later(wait: Callable[..., object]) -> None:
    queue, _ = connected()
    queue.put(bytes(HIGH_WATER))
    waiting = [asyncio.ensure_future(wait(queue)) for _ in range(3)]  # type: ignore[call-overload]
    await settle()
    queue.end()
    for task in waiting:
        with pytest.raises(ConsoleEnded):
            await asyncio.wait_for(task, HANGS)
    with pytest.raises(ConsoleEnded):
        queue.put(b"x")
    with pytest.raises(ConsoleEnded):
        await queue.send(b"x")
    assert len(queue) == 0


async def test_a_device_may_call_back_from_within_receive() -> None:
    class Eager(StubDevice):
        def receive(self, data: bytes) -> int:
            if self._writable is not None:
                self._writable()
            return super().receive(data[:1])

    queue, device = InputQueue(), Eager(room=5)
    queue.connect(device)
    queue.put(b"hello world")
    assert (bytes(device.received), len(queue)) == (b"hello", 6)


async def test_of_those_who_gave_up_waiting_nothing_is_kept() -> None:
    """A guest that takes nothing would have all stay who ever typed to it."""
    queue, device = connected()
    queue.put(bytes(HIGH_WATER))
    waits = asyncio.create_task(queue.drain())
    for _ in range(100):
        task = asyncio.create_task(queue.send(b"x"))
        await settle()
        task.cancel()
        await asyncio.wait([task])
    assert len(queue._waiters) == 1
    device.make_room(HIGH_WATER)
    await asyncio.wait_for(waits, HANGS)
