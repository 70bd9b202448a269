"""Every way to break a chain that VIRTIO 1.2 §2.7 forbids is told apart, returns its head, and reads nothing outside memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiovmm.memory import GuestMemory
from aiovmm.native import lib
from aiovmm.virtqueue.driver import INDIRECT, NEXT, WRITE, Descriptor, DriverQueue
from aiovmm.virtqueue.features import EVENT_IDX, RING_FEATURES, VERSION_1
from tests.virtqueue.pair import RingPair

SIZE = 64
BUF = 0x80000  # in memory, far from the rings
END = 1 << 20

Maker = Callable[[DriverQueue], list[Descriptor]]
D = Descriptor

CASES: dict[str, tuple[Maker, int]] = {
    "points to itself": (lambda d: [D(BUF, 16, NEXT, 0)], lib.AVMM_RING_TOO_LONG),
    "loop of two": (lambda d: [D(BUF, 16, NEXT, 1), D(BUF, 16, NEXT, 0)], lib.AVMM_RING_TOO_LONG),
    "loop of empty descriptors": (lambda d: [D(0, 0, NEXT, 0)], lib.AVMM_RING_TOO_LONG),
    "next just outside": (lambda d: [D(BUF, 16, NEXT, SIZE)], lib.AVMM_RING_BAD_NEXT),
    "next far outside": (lambda d: [D(BUF, 16, NEXT, 0xFFFF)], lib.AVMM_RING_BAD_NEXT),
    "readable after writable": (lambda d: [D(BUF, 16, WRITE | NEXT, 1), D(BUF, 16)], lib.AVMM_RING_BAD_ORDER),
    "outside memory": (lambda d: [D(END, 1)], lib.AVMM_RING_FAULT),
    "last byte outside memory": (lambda d: [D(END - 15, 16, WRITE)], lib.AVMM_RING_FAULT),
    "wraps round the address space": (lambda d: [D((1 << 64) - 16, 32)], lib.AVMM_RING_FAULT),
    "more than 2^32 bytes": (
        # The length is checked before the memory, so no 4 GiB of RAM is needed to see it.
        lambda d: [D(BUF, 0x1000, NEXT, 1), D(BUF, 0xFFFFFFFF)],
        lib.AVMM_RING_TOO_LARGE,
    ),
    "indirect with next": (
        lambda d: [D(d.table([D(BUF, 16)]), 16, INDIRECT | NEXT, 1), D(BUF, 16)],
        lib.AVMM_RING_BAD_INDIRECT,
    ),
    "indirect and empty": (lambda d: [D(BUF, 0, INDIRECT)], lib.AVMM_RING_BAD_INDIRECT),
    "indirect of 24 bytes": (lambda d: [D(d.table([D(BUF, 1)] * 2), 24, INDIRECT)], lib.AVMM_RING_BAD_INDIRECT),
    "indirect in indirect": (
        lambda d: [D(d.table([D(d.table([D(BUF, 1)]), 16, INDIRECT)]), 16, INDIRECT)],
        lib.AVMM_RING_BAD_INDIRECT,
    ),
    "indirect table outside memory": (lambda d: [D(END - 16, 32, INDIRECT)], lib.AVMM_RING_FAULT),
    "indirect table wraps round": (lambda d: [D((1 << 64) - 16, 32, INDIRECT)], lib.AVMM_RING_FAULT),
    "next outside the indirect table": (
        lambda d: [D(d.table([D(BUF, 1, NEXT, 2), D(BUF, 1)]), 32, INDIRECT)],
        lib.AVMM_RING_BAD_NEXT,
    ),
    "loop in the indirect table": (
        lambda d: [D(d.table([D(BUF, 1, NEXT, 1), D(BUF, 1, NEXT, 0)]), 32, INDIRECT)],
        lib.AVMM_RING_TOO_LONG,
    ),
    "longer than the queue, direct and indirect together": (
        lambda d: [
            D(BUF, 1, NEXT, 1),
            D(d.table([D(BUF, 1, NEXT, i + 1) for i in range(SIZE - 1)] + [D(BUF, 1)]), 16 * SIZE, INDIRECT),
        ],
        lib.AVMM_RING_TOO_LONG,
    ),
    "wrong order across direct and indirect": (
        lambda d: [D(BUF, 1, WRITE | NEXT, 1), D(d.table([D(BUF, 1)]), 16, INDIRECT)],
        lib.AVMM_RING_BAD_ORDER,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_chain_is_refused_and_its_head_is_known(memory: GuestMemory, name: str) -> None:
    make, code = CASES[name]
    pair = RingPair(memory, size=SIZE)
    head = pair.driver.add_raw(make(pair.driver))
    failure = pair.pop_failure()
    assert failure.code == code
    assert failure.head == head
    assert lib.avmm_queue_push_one(pair.queue, failure.head, 0) == 0
    assert [(u.head, u.length) for u in pair.driver.poll()] == [(head, 0)]


def test_a_fault_names_the_range(memory: GuestMemory) -> None:
    pair = RingPair(memory, size=SIZE)
    pair.driver.add_raw([D(END - 100, 200)])
    failure = pair.pop_failure()
    assert (failure.address, failure.length) == (END, 100)  # the part of the buffer that is not memory


def test_a_head_outside_the_table_cannot_be_returned(memory: GuestMemory) -> None:
    pair = RingPair(memory, size=SIZE)
    pair.driver.offer(SIZE)
    failure = pair.pop_failure()
    assert (failure.code, failure.head) == (lib.AVMM_RING_BAD_HEAD, -1)


def test_an_index_further_ahead_than_the_ring_is_long_is_refused(memory: GuestMemory) -> None:
    pair = RingPair(memory, size=SIZE)
    pair.driver.publish(SIZE + 1)
    assert pair.pop_failure().code == lib.AVMM_RING_BAD_INDEX
    assert pair.pop_failure().code == lib.AVMM_RING_BAD_INDEX


def test_heads_in_flight_cannot_be_offered_without_end(memory: GuestMemory) -> None:
    """A guest that offers the same chain again and again must not make the device remember ever more of them."""
    pair = RingPair(memory, size=SIZE)
    pair.driver.put(0, D(BUF, 1))
    for _ in range(SIZE):
        pair.driver.offer(0)
    assert len(pair.pop()) == SIZE
    pair.driver.offer(0)
    assert pair.pop_failure().code == lib.AVMM_RING_BAD_INDEX


def test_indirect_needs_to_be_negotiated(memory: GuestMemory) -> None:
    pair = RingPair(memory, size=SIZE, features=VERSION_1 | EVENT_IDX)
    pair.driver.add_raw([D(pair.driver.table([D(BUF, 1)]), 16, INDIRECT)])
    assert pair.pop_failure().code == lib.AVMM_RING_BAD_INDIRECT


def test_good_chains_before_a_malformed_one_are_delivered_first(memory: GuestMemory) -> None:
    pair = RingPair(memory, size=SIZE)
    good = [pair.driver.add([b"good"]) for _ in range(3)]
    pair.driver.put(40, D(BUF, 16, NEXT, 40))
    pair.driver.offer(40)
    assert [c.head for c in pair.pop()] == good
    assert pair.pop_failure().code == lib.AVMM_RING_TOO_LONG


def test_read_only_memory_is_readable_but_not_writable() -> None:
    memory = GuestMemory.create([(0, 1 << 20)])
    rom = memory.map_fd(2 << 20, 4096, memory.regions[0].fd, 0x80000, readonly=True)
    try:
        pair = RingPair(memory, size=SIZE)
        memory.write(0x80000, b"in the ROM")
        pair.driver.add_raw([D(rom.gpa, 10)])
        (chain,) = pair.pop()
        assert chain.read_all() == b"in the ROM"
        pair.push(chain)
        pair.driver.add_raw([D(rom.gpa, 10, WRITE)])
        assert pair.pop_failure().code == lib.AVMM_RING_FAULT
    finally:
        memory.close()


@pytest.mark.parametrize("features", [RING_FEATURES, VERSION_1])
def test_pushing_what_is_not_in_flight_changes_nothing(memory: GuestMemory, features: int) -> None:
    pair = RingPair(memory, size=SIZE, features=features)
    assert lib.avmm_queue_push_one(pair.queue, 0, 0) == -1
    pair.driver.add([b"x"])
    pair.pop()
    assert lib.avmm_queue_push_one(pair.queue, SIZE, 0) == -1
    assert pair.driver.poll() == []
