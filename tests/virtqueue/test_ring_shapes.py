"""Chains of every legal shape arrive at the device as the driver made them, and come back as the device left them."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiovmm.memory import GuestMemory
from aiovmm.native import lib
from aiovmm.virtqueue.chain import Chain
from aiovmm.virtqueue.driver import INDIRECT, NEXT, WRITE, Descriptor
from aiovmm.virtqueue.features import EVENT_IDX, INDIRECT_DESC, RING_FEATURES, VERSION_1
from tests.virtqueue.pair import RingPair


def test_buffers_of_no_length_are_legal_and_vanish(memory: GuestMemory) -> None:
    pair = RingPair(memory)
    pair.driver.add([b"", b"a", b""], [0, 2, 0])
    (chain,) = pair.pop()
    assert [bytes(s) for s in chain.readable] == [b"a"]
    assert [len(s) for s in chain.writable] == [2]


def test_a_chain_of_nothing_but_empty_buffers(memory: GuestMemory) -> None:
    pair = RingPair(memory)
    pair.driver.add_raw([Descriptor(0, 0, NEXT, 1), Descriptor(1 << 60, 0, WRITE)])
    (chain,) = pair.pop()
    assert (chain.readable, chain.writable) == ([], [])
    assert chain.read_all() == b""


def test_the_write_flag_of_an_indirect_descriptor_is_ignored(memory: GuestMemory) -> None:
    """VIRTIO 1.2 §2.7.5.3.2."""
    pair = RingPair(memory)
    memory.write(0x80000, b"text")
    table = pair.driver.table([Descriptor(0x80000, 4)])
    pair.driver.add_raw([Descriptor(table, 16, INDIRECT | WRITE)])
    (chain,) = pair.pop()
    assert chain.read_all() == b"text"


def test_a_table_at_an_odd_address(memory: GuestMemory) -> None:
    pair = RingPair(memory)
    memory.write(0x80000, b"text")
    memory.write(0x90001, Descriptor(0x80000, 4).pack())
    pair.driver.add_raw([Descriptor(0x90001, 16, INDIRECT)])
    assert pair.pop()[0].read_all() == b"text"


def test_a_buffer_across_two_regions_is_two_segments() -> None:
    memory = GuestMemory.create([(0, 1 << 20), (1 << 20, 1 << 20)])
    try:
        pair = RingPair(memory)
        memory.write((1 << 20) - 2, b"ab")
        memory.write(1 << 20, b"cd")
        pair.driver.add_raw([Descriptor((1 << 20) - 2, 4)])
        (chain,) = pair.pop()
        assert [bytes(s) for s in chain.readable] == [b"ab", b"cd"]
        assert chain.read(3) == b"abc"
    finally:
        memory.close()


@pytest.mark.parametrize("size", [1, 2, 32768])
def test_the_smallest_and_the_largest_ring(size: int) -> None:
    memory = GuestMemory.create([(0, 4 << 20)])
    try:
        pair = RingPair(memory, size=size)
        for _ in range(3):
            pair.driver.add([b"x"])
            (chain,) = pair.pop()
            pair.push(chain)
            assert len(pair.driver.poll()) == 1
    finally:
        memory.close()


class Rings(RuleBasedStateMachine):
    """Driver and device step in any order; a model keeps what every chain holds."""

    @initialize(
        size=st.sampled_from([1, 2, 8, 32]),
        start=st.sampled_from([0, 1, 65500, 65535, 32767]),
        event_idx=st.booleans(),
        seed=st.integers(0, 1 << 30),
    )
    def set_up(self, size: int, start: int, event_idx: bool, seed: int) -> None:
        self.memory = GuestMemory.create([(0, 1 << 20)])
        features = VERSION_1 | INDIRECT_DESC | (EVENT_IDX if event_idx else 0)
        self.pair = RingPair(self.memory, size=size, features=features, start=start, seed=seed)
        self.pair.needs_interrupt()  # a resumed queue gives one spare interrupt
        self.offered: list[tuple[int, list[bytes], list[int]]] = []
        self.taken: list[Chain] = []
        self.returned: list[tuple[int, bytes]] = []
        self.random = random.Random(seed)

    def teardown(self) -> None:
        if hasattr(self, "memory"):
            self.taken.clear()
            self.memory.close()

    @rule(reads=st.integers(0, 5), writes=st.integers(0, 5), indirect=st.booleans(), direct=st.integers(0, 3))
    def offer(self, reads: int, writes: int, indirect: bool, direct: int) -> None:
        # Contents come from the seed, not from hypothesis: it shall vary shapes and orders, which is what can go wrong.
        readable = [self.random.randbytes(self.random.randint(0, 40)) for _ in range(reads)]
        writable = [self.random.randint(0, 40) for _ in range(writes)]
        count = len(readable) + len(writable)
        direct = min(direct, count - 1) if indirect else count
        needed = direct + 1 if indirect else count
        if count == 0 or needed > len(self.pair.driver.free) or needed > self.pair.config.size:
            return
        head = self.pair.driver.add(readable, writable, indirect=indirect, direct=direct if indirect else 0)
        self.offered.append((head, readable, writable))

    @rule(most=st.integers(1, 40))
    def take(self, most: int) -> None:
        chains = self.pair.pop(most)
        assert len(chains) == min(most, len(self.offered))
        for chain in chains:
            head, readable, writable = self.offered.pop(0)
            assert chain.head == head
            assert chain.read_all() == b"".join(readable)
            assert chain.writable_size == sum(writable)
            assert [len(s) for s in chain.writable] == [n for n in writable if n]
        self.taken += chains

    @precondition(lambda self: bool(getattr(self, "taken", None)))
    @rule(which=st.integers(0, 31))
    def give_back_one(self, which: int) -> None:
        chain = self.taken.pop(which % len(self.taken))
        text = self.random.randbytes(self.random.randint(0, chain.writable_size))
        chain.write(text)
        self.pair.push(chain)
        self.returned.append((chain.head, text))

    @rule()
    def reap(self) -> None:
        assert [(u.head, u.data) for u in self.pair.driver.poll()] == self.returned
        self.returned.clear()

    @rule()
    def put_back(self) -> None:
        """What was just taken and not yet answered can be taken again."""
        if self.offered or self.taken:
            return
        chains = self.pair.pop()
        assert lib.avmm_queue_put_back(self.pair.queue, len(chains)) == 0
        assert [c.head for c in self.pair.pop()] == [c.head for c in chains]
        assert lib.avmm_queue_put_back(self.pair.queue, len(chains)) == 0

    @invariant()
    def in_flight_is_what_was_taken(self) -> None:
        if hasattr(self, "pair"):
            q = self.pair.queue
            assert (q.last_avail - q.used_idx) & 0xFFFF == len(self.taken)


TestRings = Rings.TestCase
TestRings.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbage_never_leaves_memory(memory: GuestMemory, data: st.DataObject) -> None:
    """Whatever stands in the descriptor table: a segment that a chain yields lies in guest memory, and the sums agree."""
    pair = RingPair(memory, size=8)
    address = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 20) + 100), st.just(pair.driver.desc))
    length = st.one_of(st.integers(0, (1 << 32) - 1), st.integers(0, 300), st.sampled_from([16, 32, 128]))
    descriptor = st.builds(Descriptor, address, length, st.integers(0, 7), st.integers(0, 9))
    for i in range(8):
        pair.driver.put(i, data.draw(descriptor))
    for _ in range(data.draw(st.integers(1, 8))):
        pair.driver.offer(data.draw(st.integers(0, 9)))
    n = pair.batch.take(pair.queue, memory.table)
    region = memory.regions[0]
    for c in pair.batch.chains[0 : max(n, 0)]:
        total = 0
        for v in pair.batch.iov[c.iov : c.iov + c.n_read + c.n_write]:
            at = int(lib_address(v.iov_base))
            assert region.host <= at
            assert at + v.iov_len <= region.host + region.size
            total += v.iov_len
        assert total == c.read_bytes + c.write_bytes


def lib_address(pointer: object) -> int:
    from aiovmm.native import ffi

    return int(ffi.cast("uintptr_t", pointer))


def test_all_ring_features_are_offered() -> None:
    assert RING_FEATURES == VERSION_1 | EVENT_IDX | INDIRECT_DESC
