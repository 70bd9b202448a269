"""The record of requests in flight: whenever the device's process dies, its successor does exactly what was not returned."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.memory import GuestMemory
from aiovmm.native import ffi, lib, owners
from aiovmm.virtqueue.batch import Batch
from aiovmm.virtqueue.config import QueuePosition
from aiovmm.virtqueue.features import RING_FEATURES
from aiovmm.virtqueue.ring import open_ring
from tests.virtqueue.pair import RingPair

SIZE = 8
HEAD = struct.Struct("<QHHHH")  # features, version, desc_num, last_batch_head, used_idx
ENTRY = struct.Struct("<B5xHQ")  # inflight, next, counter


class Mortal(RingPair):
    """A ring pair whose device's end dies and is born again with the record alone."""

    def __init__(self, memory: GuestMemory, start: int = 0) -> None:
        super().__init__(memory, size=SIZE, start=start)
        self.record = bytearray(HEAD.size + SIZE * ENTRY.size)
        self.config = replace(self.config, inflight=owners.view(self.record, "struct avmm_inflight *"))
        self.born(QueuePosition(start, start))

    def born(self, position: QueuePosition | None = None) -> None:
        self.ring = open_ring(self.config, self.memory, RING_FEATURES, position)
        self.queue = self.ring.queue
        self.batch = Batch(SIZE, 4 * SIZE + 64, addresses=True)

    def take(self, most: int = SIZE) -> list[int]:
        return [chain.head for chain in self.pop(most)]

    def give(self, heads: Sequence[int]) -> None:
        assert lib.avmm_queue_push(self.queue, list(heads), [0] * len(heads), len(heads)) == 0

    def in_flight(self) -> set[int]:
        return {i for i in range(SIZE) if ENTRY.unpack_from(self.record, HEAD.size + i * ENTRY.size)[0]}

    def die_after_publishing(self, heads: Sequence[int]) -> None:
        """The used index is out, the entries of the batch are not cleared yet."""
        *_, used = HEAD.unpack_from(self.record)
        self.give(heads)
        features, version, size, last, _ = HEAD.unpack_from(self.record)
        HEAD.pack_into(self.record, 0, features, version, size, last, used)
        for head in heads[len(heads) // 2 :]:
            self.record[HEAD.size + head * ENTRY.size] = 1

    def die_before_publishing(self, heads: Sequence[int]) -> None:
        """The batch is linked in the record, and the used index is not out."""
        features, version, size, last, used = HEAD.unpack_from(self.record)
        for head in heads:
            at = HEAD.size + head * ENTRY.size
            inflight, _, counter = ENTRY.unpack_from(self.record, at)
            ENTRY.pack_into(self.record, at, inflight, last, counter)
            last = head
        HEAD.pack_into(self.record, 0, features, version, size, last, used)


@pytest.mark.parametrize("start", [0, 65533])
def test_what_was_taken_is_taken_again_in_the_order_of_its_arrival(memory: GuestMemory, start: int) -> None:
    pair = Mortal(memory, start)
    heads = [pair.driver.add([b"x"]) for _ in range(6)]
    assert pair.take() == heads
    pair.give([heads[4], heads[1]])
    assert pair.in_flight() == {heads[i] for i in (0, 2, 3, 5)}
    pair.born()
    new = pair.driver.add([b"y"])
    assert lib.avmm_queue_available(pair.queue) == 5
    assert pair.take() == [heads[0], heads[2], heads[3], heads[5], new]
    pair.give([new, heads[0], heads[2], heads[3], heads[5]])
    assert {used.head for used in pair.driver.poll()} == {*heads, new}
    assert pair.in_flight() == set()


def test_putting_back_gives_the_same_again(memory: GuestMemory) -> None:
    pair = Mortal(memory)
    heads = [pair.driver.add([b"x"]) for _ in range(3)]
    pair.take()
    pair.born()
    new = pair.driver.add([b"y"])
    assert pair.take() == [*heads, new]
    assert lib.avmm_queue_put_back(pair.queue, 3) == 0
    assert pair.take() == [heads[1], heads[2], new]
    assert lib.avmm_queue_put_back(pair.queue, 4) == 0
    assert pair.take(2) == heads[:2]
    assert lib.avmm_queue_put_back(pair.queue, 5) == -1


def test_a_new_record_has_nothing_in_flight_whatever_its_entries_say(memory: GuestMemory) -> None:
    """Else more could be taken than the ring has."""
    pair = Mortal(memory)
    for head in range(SIZE):
        ENTRY.pack_into(pair.record, HEAD.size + head * ENTRY.size, 1, 0, head)
    HEAD.pack_into(pair.record, 0, 0, 0, 0, 0, 0)
    pair.born(QueuePosition())
    heads = [pair.driver.add([b"x"]) for _ in range(SIZE)]
    assert lib.avmm_queue_available(pair.queue) == SIZE
    assert pair.take() == heads
    pair.give(heads)
    assert pair.in_flight() == set()


def test_one_interrupt_more_is_given_for_the_one_that_may_be_lost(memory: GuestMemory) -> None:
    pair = Mortal(memory)
    pair.driver.add([b"x"])
    pair.give(pair.take())
    pair.driver.enable_interrupts()
    pair.born()
    assert pair.needs_interrupt()
    assert not pair.needs_interrupt()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_through_any_number_of_deaths_every_chain_comes_back_once(data: st.DataObject) -> None:
    memory = GuestMemory.create([(0, 1 << 20)])
    try:
        pair = Mortal(memory, data.draw(st.sampled_from([0, 65530])))
        held: list[int] = []
        offered = returned = 0
        for _ in range(data.draw(st.integers(1, 40))):
            step = data.draw(st.sampled_from(["add", "take", "give", "die", "die after", "die before"]))
            if step == "add" and pair.driver.free:
                pair.driver.add([b"x"])
                offered += 1
            elif step == "take":
                held += pair.take(data.draw(st.integers(1, SIZE)))
            batch = data.draw(st.permutations(held)) if held else []
            batch = batch[: data.draw(st.integers(1, len(batch)))] if batch else []
            if step == "give" and batch:
                pair.give(batch)
                held = [head for head in held if head not in batch]
            elif step.startswith("die"):
                if step == "die after" and batch:
                    pair.die_after_publishing(batch)
                elif step == "die before" and batch:
                    pair.die_before_publishing(batch)
                pair.born()
                held = []
            returned += len(pair.driver.poll())  # refuses a chain that is not outstanding
        held += pair.take()
        while held:
            pair.give(held)
            held = pair.take()
        returned += len(pair.driver.poll())
        assert returned == offered
        assert pair.in_flight() == set()
        del pair
    finally:
        memory.close()


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=HEAD.size + SIZE * ENTRY.size, max_size=HEAD.size + SIZE * ENTRY.size))
def test_a_record_of_noise_is_survived(noise: bytes) -> None:
    memory = GuestMemory.create([(0, 1 << 20)])
    try:
        pair = Mortal(memory)
        pair.driver.add([b"x"])
        pair.record[:] = noise
        pair.born()
        n = pair.batch.take(pair.queue, memory.table)
        assert n <= SIZE
        del pair
    finally:
        memory.close()


@pytest.mark.parametrize("order", [(5, 5, 5, 5), (9, 7, 5, 3), (1, 1 << 63, 0, (1 << 64) - 1)])
def test_requests_are_taken_again_by_their_counters(memory: GuestMemory, order: tuple[int, ...]) -> None:
    pair = Mortal(memory)
    heads = [pair.driver.add([b"x"]) for _ in order]
    assert pair.take() == heads
    for head, counter in zip(heads, order, strict=True):
        ENTRY.pack_into(pair.record, HEAD.size + head * ENTRY.size, 1, 0, counter)
    pair.born()
    assert pair.take() == [head for _, head in sorted(zip(order, heads, strict=True))]


def test_no_order_of_requests_takes_long() -> None:
    """A peer chooses it. Compared with the usual one, of which the time is nearly that of reading."""

    def recovered(counters: Sequence[int]) -> float:
        size = len(counters)
        record = bytearray(HEAD.pack(0, 1, size, 0, 0)) + b"".join(ENTRY.pack(1, 0, counter) for counter in counters)
        queue, again, used = ffi.new("struct avmm_queue *"), ffi.new("uint16_t[]", size), bytearray(8)
        queue.size = size
        owners.part(queue, "used").host = owners.address(owners.view(used, "uint8_t *"))
        began = time.thread_time()
        lib.avmm_queue_recover(queue, owners.view(record, "struct avmm_inflight *"), again)
        took = time.thread_time() - began
        assert [counters[head] for head in again] == sorted(counters)
        return took

    usual = min(recovered(range(1 << 15)) for _ in range(3))
    assert min(recovered(range(1 << 15, 0, -1)) for _ in range(3)) < 20 * usual
