"""A live queue on the event loop: waiting, bounded drains, interrupts at the end of a batch, closing."""

from __future__ import annotations

import asyncio
import os

import pytest

from aiovmm.errors import ChainError, GuestFault, StateError
from aiovmm.memory import GuestMemory
from aiovmm.native import ffi, lib
from aiovmm.virtqueue.batch import Batch
from aiovmm.virtqueue.config import QueueConfig, QueueCounters, QueuePosition
from aiovmm.virtqueue.driver import NEXT, Arena, Descriptor, DriverQueue
from aiovmm.virtqueue.features import RING_FEATURES, VERSION_1
from aiovmm.virtqueue.queue import Queue
from tests.limits import HANGS
from tests.virtqueue.live import Live, turn


async def test_a_waiting_task_is_woken_by_a_kick(live: Live) -> None:
    queue = live.activate()
    task = asyncio.create_task(anext(queue))
    await turn()
    assert not task.done()
    live.driver.add([b"x"])
    assert live.driver.kick()
    async with asyncio.timeout(HANGS):
        assert (await task).read_all() == b"x"


async def test_chains_offered_before_activation_need_no_kick(live: Live) -> None:
    live.driver.add([b"x"])
    async with asyncio.timeout(HANGS):
        assert (await anext(live.activate())).read_all() == b"x"


async def test_a_kick_without_a_chain_wakes_nobody(live: Live) -> None:
    queue = live.activate()
    task = asyncio.create_task(anext(queue))
    for _ in range(3):
        live.driver.kick(force=True)
        await turn()
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def test_a_cancelled_wait_leaves_the_queue_usable(live: Live) -> None:
    queue = live.activate()
    for _ in range(3):
        task = asyncio.create_task(anext(queue))
        await turn()
        task.cancel()
        await asyncio.wait([task])
    live.driver.add([b"x"])
    live.driver.kick()
    async with asyncio.timeout(HANGS):
        assert (await anext(queue)).read_all() == b"x"


async def test_interrupts_are_given_once_a_batch(live: Live) -> None:
    queue = live.activate()
    for _ in range(20):
        live.driver.add([b"x"])
    live.driver.enable_interrupts()
    for _ in range(20):
        queue.push(await anext(queue))
    assert live.driver.irq.pulses == 0
    assert len(live.driver.poll()) == 20  # yet the driver sees every one at once
    await turn()
    assert live.driver.irq.pulses == queue.interrupts == 1


async def test_the_loop_gets_its_turn_from_a_guest_that_never_stops(live: Live) -> None:
    """The driver refills the ring as fast as the device empties it; other tasks must go on."""
    queue = live.activate(features=VERSION_1)
    turns = 0

    async def device() -> None:
        async for chain in queue:
            queue.push(chain)
            live.driver.poll()
            live.driver.add([b"x"])

    live.driver.add([b"x"])
    task = asyncio.create_task(device())
    async with asyncio.timeout(HANGS):
        while turns < 50:
            await asyncio.sleep(0)
            turns += 1
    assert not task.done()
    assert queue.counters.popped < 50 * 128
    task.cancel()
    await asyncio.wait([task])


async def test_the_loop_gets_its_turn_from_a_guest_that_offers_a_chain_as_soon_as_the_ring_was_found_empty(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a processor that is interrupted for the last one before the device has begun to wait."""
    enough, taken = 1000, [0]
    queue = live.activate(features=VERSION_1)

    async def device() -> None:
        async for chain in queue:
            taken[-1] += 1
            queue.push(chain)

    def offer() -> None:
        live.driver.poll()
        if sum(taken) < enough:
            live.driver.add([b"x"])

    monkeypatch.setattr(live.driver.irq, "pulse", offer)
    live.driver.add([b"x"])
    task = asyncio.create_task(device())
    while sum(taken) < enough:
        taken.append(0)
        await asyncio.sleep(0)
    assert 0 < max(taken) <= live.driver.size
    task.cancel()
    await asyncio.wait([task])


async def test_batches_give_the_loop_its_turn_too(live: Live) -> None:
    queue = live.activate()

    async def device() -> None:
        heads, lengths = ffi.new("uint16_t[]", 128), ffi.new("uint32_t[]", 128)
        async for batch in queue.batches():
            for i in range(batch.count):
                heads[i] = batch.chains[i].head
                lengths[i] = 0
            queue.push_many(heads, lengths, batch.count)
            live.driver.poll()
            live.driver.add([b"x"])

    live.driver.add([b"x"])
    task = asyncio.create_task(device())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not task.done()
    assert 10 < queue.counters.popped < 50 * 128
    task.cancel()
    await asyncio.wait([task])


async def test_a_batch_points_straight_into_guest_memory(live: Live) -> None:
    queue = live.activate()
    live.driver.add([b"one", b"two"], [4])
    batch = Batch(8, 32)
    assert queue.pop_batch(batch) == 1
    chain = batch.chains[0]
    assert (chain.n_read, chain.n_write, chain.read_bytes, chain.write_bytes) == (2, 1, 6, 4)
    texts = [bytes(ffi.buffer(v.iov_base, v.iov_len)) for v in batch.iov[0:2]]
    assert texts == [b"one", b"two"]
    ffi.memmove(batch.iov[2].iov_base, b"done", 4)
    queue.push_many([chain.head], [4], 1)
    (used,) = live.driver.poll()
    assert used.data == b"done"


async def test_a_batch_grows_for_a_chain_in_many_pieces(live: Live) -> None:
    live.driver.add([b"x"] * 100)
    batch = Batch(4, 2)
    assert live.activate().pop_batch(batch) == 1
    assert batch.chains[0].n_read == 100


async def test_pop_and_put_back(live: Live) -> None:
    queue = live.activate()
    assert queue.pop() is None
    live.driver.add([b"a"], [1])
    live.driver.add([b"b"], [1])
    chain = queue.pop()
    assert chain is not None
    assert chain.read_all() == b"a"
    queue.put_back(chain)
    again = [queue.pop(), queue.pop(), queue.pop()]
    assert [c and c.read_all() for c in again] == [b"a", b"b", None]
    batch = Batch(4, 8)
    live.driver.add([b"c"], [1])
    assert queue.pop_batch(batch) == 1
    queue.put_back_batch(1)
    assert queue.pop_batch(batch) == 1
    with pytest.raises(StateError):
        queue.put_back_batch(4)


async def test_the_end_of_a_batch_puts_back_returns_and_interrupts_in_one(live: Live) -> None:
    queue, batch = live.activate(), Batch(4, 8)
    for byte in b"abc":
        live.driver.add([bytes([byte])], [1])
    assert queue.pop_batch(batch) == 3
    heads = ffi.new("uint16_t[]", [batch.chains[0].head])
    lengths = ffi.new("uint32_t[]", [1])
    queue.finish_batch(2, heads, lengths, 1)
    assert queue.interrupts == 1
    assert [used.length for used in live.driver.poll()] == [1]
    rest = [queue.pop(), queue.pop(), queue.pop()]
    assert [c and c.read_all() for c in rest] == [b"b", b"c", None]
    with pytest.raises(StateError):
        queue.finish_batch(3, heads, lengths, 0)


async def test_a_chain_is_returned_once_to_its_own_queue(live: Live) -> None:
    queue, other = live.activate(), live.activate()
    live.driver.add([b"a"], [1])
    chain = queue.pop()
    assert chain is not None
    for written in (2, -1):
        with pytest.raises(StateError):
            queue.push(chain, written)
    with pytest.raises(StateError):
        other.push(chain)
    queue.push(chain, 1)
    with pytest.raises(StateError):
        queue.push(chain)
    assert len(live.driver.poll()) == 1


async def test_a_malformed_chain_comes_back_unused_and_is_told(live: Live) -> None:
    queue = live.activate()
    head = live.driver.add_raw([Descriptor(0x80000, 1, NEXT, 0)])
    with pytest.raises(ChainError, match="loops") as caught:
        await anext(queue)
    assert caught.value.head == head
    assert [(u.head, u.length) for u in live.driver.poll()] == [(head, 0)]


async def test_a_buffer_outside_memory_is_a_fault_with_its_address(live: Live) -> None:
    queue = live.activate()
    live.driver.add_raw([Descriptor(1 << 40, 8)])
    with pytest.raises(GuestFault) as caught:
        queue.pop_batch(Batch(4, 8))
    assert (caught.value.address, caught.value.size) == (1 << 40, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": 100},
        {"size": 256},
        {"desc": 0x1008},
        {"avail": 0x2001},
        {"used": 0x3002},
        {"desc": 0xFFFF0},
        {"used": 1 << 40},
        {"avail": (1 << 64) - 2},
    ],
    ids=str,
)
async def test_rings_that_cannot_be_are_refused_at_activation(live: Live, change: dict[str, int]) -> None:
    config = live.driver.config()
    vars(config).update(change)
    with pytest.raises((ChainError, GuestFault)):
        live.activate(config)


async def test_a_disabled_queue_waits_for_ever_and_ignores_its_garbage(live: Live) -> None:
    queue = live.activate(QueueConfig(max_size=64, size=0, desc=1 << 60))
    assert not queue.enabled
    assert queue.pop() is None
    task = asyncio.create_task(anext(queue))
    live.driver.kick(force=True)
    await turn()
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def test_closing_wakes_the_waiter_and_stops_listening(live: Live) -> None:
    queue = live.activate()
    task = asyncio.create_task(anext(queue))
    await turn()
    queue.close()
    queue.close()
    with pytest.raises(StateError):
        await task
    live.driver.kick(force=True)
    await turn()
    assert os.eventfd_read(live.fd) == 1  # nobody reads it any more
    for use in (queue.pop, lambda: queue.pop_batch(Batch(1, 1))):
        with pytest.raises(StateError):
            use()


async def test_only_one_task_waits(live: Live) -> None:
    queue = live.activate()
    task = asyncio.create_task(queue.wait())
    await turn()
    with pytest.raises(StateError):
        await queue.wait()
    task.cancel()
    await asyncio.wait([task])


async def test_the_position_is_where_a_queue_can_go_on(live: Live) -> None:
    queue = live.activate()
    for text in (b"1", b"2", b"3"):
        live.driver.add([text])
    first = queue.pop()
    assert first is not None
    queue.push(first)
    assert queue.position == QueuePosition(1, 1)  # what was taken from the ring and not handed out counts as waiting
    queue.close()
    assert queue.position == QueuePosition(1, 1)
    resumed = Queue.activate(
        live.driver.config(),
        live.memory,
        index=0,
        features=RING_FEATURES,
        kick_fd=live.fd,
        interrupt=live.driver.irq,
        position=queue.position,
    )
    live.queues.append(resumed)
    second = resumed.pop()
    assert second is not None
    assert second.read_all() == b"2"


async def test_a_view_outlives_its_memory() -> None:
    """Guest memory is not unmapped under a device that still holds a chain."""
    memory = GuestMemory.create([(0, 1 << 20)])
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    driver = DriverQueue(memory, Arena(0x1000, 0x80000), lambda: None, size=8)
    queue = Queue.activate(driver.config(), memory, index=0, features=RING_FEATURES, kick_fd=fd, interrupt=driver.irq)
    driver.add([b"still here"], [4])
    chain = queue.pop()
    assert chain is not None
    queue.close()
    memory.close()
    assert chain.read_all() == b"still here"
    chain.write(b"fine")
    os.close(fd)


async def test_a_device_can_wait_for_more_than_it_has_seen(live: Live) -> None:
    """A network device that got too few buffers for a packet puts them back and sleeps until there are more."""
    for features in (RING_FEATURES, VERSION_1):
        live.driver = DriverQueue(
            live.memory, Arena(0x40000, 0x40000), live.driver._kick_device, size=128, features=features
        )
        queue = live.activate(features=features)
        live.driver.add([b"1"])
        live.driver.add([b"2"])
        assert queue.pop_batch(Batch(8, 8)) == 2
        queue.put_back_batch(2)
        await queue.wait(1)
        task = asyncio.create_task(queue.wait(2))
        await turn()
        live.driver.kick()
        await turn()
        assert not task.done()
        live.driver.add([b"3"])
        assert live.driver.kick()
        async with asyncio.timeout(HANGS):
            await task
        assert queue.pop_batch(Batch(8, 8)) == 3
        queue.close()


async def test_counters_tell_what_happened(live: Live) -> None:
    queue = live.activate()
    task = asyncio.create_task(anext(queue))
    await turn()
    live.driver.add([b"x"])
    live.driver.enable_interrupts()
    live.driver.kick()
    queue.push(await task)
    await turn()
    assert queue.counters == QueueCounters(popped=1, pushed=1, kicks=1, interrupts=1)
    queue.close()
    assert queue.counters == QueueCounters(popped=1, pushed=1, kicks=1, interrupts=1)


async def test_a_chain_of_more_pieces_than_the_arrays_have_room_for(live: Live) -> None:
    live.driver = DriverQueue(live.memory, Arena(0x40000, 0x40000), live.driver._kick_device, size=512)
    live.driver.add([b"%d" % (i % 10) for i in range(400)])
    chain = live.activate().pop()
    assert chain is not None
    assert len(chain.readable) == 400
    assert chain.read_all() == b"0123456789" * 40


async def test_batches_wait_for_work(live: Live) -> None:
    queue = live.activate()
    batches = queue.batches(Batch(2, 16))
    task = asyncio.create_task(anext(batches))
    await turn()
    assert not task.done()
    for i in range(3):
        live.driver.add([b"%d" % i])
    live.driver.kick()
    async with asyncio.timeout(HANGS):
        assert (await task).count == 2  # as many as fit
        assert (await anext(batches)).count == 1
    default = asyncio.create_task(anext(queue.batches()))
    live.driver.add([b"x"])
    live.driver.kick()
    async with asyncio.timeout(HANGS):
        assert (await default).count == 1


async def test_native_code_gets_at_a_live_queue_only(live: Live) -> None:
    queue = live.activate()
    assert queue.native.size == 128
    assert queue.in_flight == 0
    with pytest.raises(StateError):
        queue.push_many(ffi.new("uint16_t[1]"), ffi.new("uint32_t[1]"), 1)
    queue.close()
    with pytest.raises(StateError):
        _ = queue.native
    with pytest.raises(StateError):
        await queue.wait()


async def test_who_still_has_a_closed_queue_finds_nothing_there(live: Live) -> None:
    """Its memory goes at once, not when the last of those who serve it does."""
    queue = live.activate()
    live.driver.add([b"x"])
    live.driver.kick()
    native, table, batch = queue.native, live.memory.table, Batch(4, 16)
    (region,) = live.memory.regions
    queue.close()
    live.memory.close()
    assert region.mapping.closed
    with pytest.raises(TypeError):
        lib.avmm_queue_enable_notify(queue._q)
    for _ in range(3):
        assert lib.avmm_queue_available(native) == 0
        assert lib.avmm_queue_enable_notify(native) == 0
        lib.avmm_queue_disable_notify(native)
        assert lib.avmm_queue_pop(native, table, batch.chains, 4, batch.iov, ffi.NULL, 16, batch.error) == 0
        assert lib.avmm_queue_push_one(native, 0, 0) == -1
        assert lib.avmm_queue_needs_interrupt(native) == 0


async def test_a_returned_chain_cannot_be_put_back(live: Live) -> None:
    queue = live.activate()
    live.driver.add([b"x"])
    chain = await anext(queue)
    assert queue.in_flight == 1
    queue.push(chain)
    with pytest.raises(StateError):
        queue.put_back(chain)
    chain.done = False
    with pytest.raises(StateError):  # not even if it claims to be fresh
        queue.push(chain)


async def test_a_batch_of_pushes_may_keep_its_interrupt_for_later(live: Live) -> None:
    queue = live.activate()
    live.driver.add([b"x"])
    live.driver.enable_interrupts()
    chain = await anext(queue)
    queue.push_many([chain.head], [0], 1, notify=False)
    await turn()
    assert live.driver.irq.pulses == 0
    queue.flush()
    assert live.driver.irq.pulses == 1


async def test_a_batch_is_returned_whole_and_in_any_order(live: Live) -> None:
    live.driver = DriverQueue(
        live.memory, Arena(0x40000, 0x40000), live.driver._kick_device, size=16, start=65530, features=RING_FEATURES
    )
    queue = Queue.activate(
        live.driver.config(),
        live.memory,
        index=0,
        features=RING_FEATURES,
        kick_fd=live.fd,
        interrupt=live.driver.irq,
        position=live.driver.position,
    )
    live.queues.append(queue)
    for _ in range(3):
        for size in range(1, 9):
            live.driver.add([], [size])
        batch = Batch(16, 16)
        assert queue.pop_batch(batch) == 8
        order = [5, 0, 7, 1, 6, 2, 4, 3]
        heads = ffi.new("uint16_t[]", [batch.chains[i].head for i in order])
        lengths = ffi.new("uint32_t[]", [i + 1 for i in order])
        queue.push_many(heads, lengths, 8)
        assert [(u.length, len(u.data)) for u in live.driver.poll()] == [(i + 1, i + 1) for i in order]
