"""Rings and buffers behind a translation: every page somewhere else in memory, with rights of its own."""

from __future__ import annotations

import random
from typing import Any

import pytest

from aiovmm.errors import GuestFault
from aiovmm.memory import PAGE_SIZE, GuestMemory
from aiovmm.native import ffi, lib
from aiovmm.virtqueue.driver import INDIRECT, NEXT, WRITE, Descriptor, DriverQueue
from aiovmm.virtqueue.ring import open_ring
from tests.virtqueue.pair import RingPair

IOVA = 1 << 40


class Scattered:
    """An AddressSpace: page i of guest memory is seen at page `order[i]` above IOVA; nothing else is mapped."""

    def __init__(self, memory: GuestMemory, seed: int) -> None:
        self.memory = memory
        self.pages = memory.size // PAGE_SIZE
        self.order = list(range(self.pages))
        random.Random(seed).shuffle(self.order)
        self.regions = ffi.new("struct avmm_region[]", self.pages)
        self.table: Any = ffi.new("struct avmm_mem *", {"count": self.pages, "regions": self.regions})
        for gpa_page, iova_page in enumerate(self.order):
            r = self.regions[iova_page]
            r.base, r.size, r.perm = IOVA + iova_page * PAGE_SIZE, PAGE_SIZE, lib.AVMM_MEM_READ | lib.AVMM_MEM_WRITE
            r.host = memory.host_address(gpa_page * PAGE_SIZE, PAGE_SIZE)

    def protect(self, gpa: int, perm: int) -> None:
        self.regions[self.order[gpa // PAGE_SIZE]].perm = perm

    def iova(self, gpa: int) -> int:
        return IOVA + self.order[gpa // PAGE_SIZE] * PAGE_SIZE + gpa % PAGE_SIZE

    def gpa(self, iova: int) -> int:
        page = (iova - IOVA) // PAGE_SIZE
        if not 0 <= page < self.pages:
            raise GuestFault(iova, 1)
        return self.order.index(page) * PAGE_SIZE + iova % PAGE_SIZE

    def free_run(self, count: int, driver: DriverQueue) -> int:
        """IOVA of `count` pages in a row, none of which holds a part of the driver's rings."""
        used = {part // PAGE_SIZE for part in (driver.desc, driver.avail, driver.used_ring)}
        run = (i for i in range(self.pages) if not used & {self.order.index(k) for k in range(i, i + count)})
        return IOVA + next(run) * PAGE_SIZE

    def slice(self, address: int, size: int) -> memoryview:
        if address % PAGE_SIZE + size > PAGE_SIZE:
            raise GuestFault(address, size)
        return self.memory.slice(self.gpa(address), size)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.slice(address, size))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.slice(address, len(data))[:] = data


def test_a_buffer_over_scattered_pages_is_several_segments() -> None:
    memory = GuestMemory.create([(0, 1 << 20)])
    space = Scattered(memory, 1)
    pair = RingPair(memory, device_memory=space, translate=space.iova)
    text = random.Random(2).randbytes(3 * PAGE_SIZE)
    at = space.free_run(3, pair.driver)
    for k in range(3):
        space.write(at + k * PAGE_SIZE, text[k * PAGE_SIZE : (k + 1) * PAGE_SIZE])
    pair.driver.add_raw([Descriptor(at + 100, 2 * PAGE_SIZE, NEXT, 1), Descriptor(at + 4095, 2, WRITE)])
    (chain,) = pair.pop()
    assert [len(s) for s in chain.readable] == [PAGE_SIZE - 100, PAGE_SIZE, 100]
    assert chain.read_all() == text[100 : 100 + 2 * PAGE_SIZE]
    chain.write(b"ab")
    assert space.read(at + 4095, 1) + space.read(at + 4096, 1) == b"ab"
    del chain
    memory.close()


@pytest.mark.parametrize("size", [256, 2048])
@pytest.mark.parametrize("skew", [0, 2048])
def test_rings_over_scattered_pages(size: int, skew: int) -> None:
    """The device is told of contiguous rings; each of their pages lies elsewhere. Elements may straddle two pages."""
    memory = GuestMemory.create([(0, 1 << 20)])
    space = Scattered(memory, size)
    pair = RingPair(memory, size=size)
    config = pair.config
    desc, avail, used = IOVA + skew, IOVA + skew + 16 * size, IOVA + skew + 16 * size + 6 + 2 * size + 2
    used = (used + 3) & ~3
    for at in range(IOVA, used + 6 + 8 * size, PAGE_SIZE):
        space.write(at, bytes(PAGE_SIZE))
    config.desc, config.avail, config.used = desc, avail, used
    ring = open_ring(config, space, 0, None)
    data = IOVA + 100 * PAGE_SIZE

    def poke(address: int, content: bytes) -> None:
        for i, byte in enumerate(content):
            space.write(address + i, bytes([byte]))

    def peek(address: int, size: int) -> bytes:
        return b"".join(space.read(address + i, 1) for i in range(size))

    for i in range(size):
        poke(desc + 16 * i, Descriptor(data + i, 1, WRITE).pack())
        poke(avail + 4 + 2 * i, i.to_bytes(2, "little"))
    poke(avail + 2, size.to_bytes(2, "little"))
    pair.batch.max_chains, pair.batch.chains = size, ffi.new("struct avmm_chain[]", size)
    assert pair.batch.take(ring.queue, space.table) == size
    for i in range(size):
        assert lib.avmm_queue_push_one(ring.queue, i, 7 * i) == 0
    assert peek(used + 2, 2) == size.to_bytes(2, "little")
    for i in range(size):
        element = peek(used + 4 + 8 * i, 8)
        assert element == i.to_bytes(4, "little") + (7 * i).to_bytes(4, "little")
    memory.close()


def test_an_indirect_table_over_scattered_pages() -> None:
    memory = GuestMemory.create([(0, 1 << 20)])
    space = Scattered(memory, 5)
    pair = RingPair(memory, device_memory=space, translate=space.iova)
    at = space.free_run(2, pair.driver) + PAGE_SIZE - 24  # the second descriptor straddles the page border
    data = at - 1000
    space.write(data, b"abc")
    table = b"".join(Descriptor(data + i, 1, NEXT if i < 2 else 0, i + 1).pack() for i in range(3))
    for i, byte in enumerate(table):
        space.write(at + i, bytes([byte]))
    pair.driver.add_raw([Descriptor(at, len(table), INDIRECT)])
    (chain,) = pair.pop()
    assert chain.read_all() == b"abc"
    del chain
    memory.close()


@pytest.mark.parametrize(
    ("perm", "flags", "legal"),
    [
        (lib.AVMM_MEM_READ, 0, True),
        (lib.AVMM_MEM_READ, WRITE, False),
        (lib.AVMM_MEM_WRITE, 0, False),
        (lib.AVMM_MEM_WRITE, WRITE, True),
        (0, 0, False),
    ],
)
def test_rights_of_a_mapping_are_kept(memory: GuestMemory, perm: int, flags: int, legal: bool) -> None:
    space = Scattered(memory, 3)
    pair = RingPair(memory, device_memory=space, translate=space.iova)
    buffer = 0x80000
    space.protect(buffer, perm)
    pair.driver.add_raw([Descriptor(space.iova(buffer), 16, flags)])
    if legal:
        assert len(pair.pop()) == 1
    else:
        assert pair.pop_failure().code == lib.AVMM_RING_FAULT


@pytest.mark.parametrize(
    ("part", "perm"), [("desc", 2), ("avail", 2), ("used_ring", 1), ("used_ring", 2), ("used_ring", 0)]
)
def test_rings_without_the_rights_they_need_are_refused(memory: GuestMemory, part: str, perm: int) -> None:
    space = Scattered(memory, 4)
    pair = RingPair(memory, device_memory=space, translate=space.iova)
    space.protect(getattr(pair.driver, part), perm)
    with pytest.raises(GuestFault):
        open_ring(pair.config, space, 0, None)


def test_a_buffer_does_not_go_on_at_address_zero(memory: GuestMemory) -> None:
    """Memory at both ends of the address space: what wraps round is a fault, not the bytes at 0."""
    regions = ffi.new("struct avmm_region[2]")
    for region, base, host in ((regions[0], 0, 0), (regions[1], (1 << 64) - PAGE_SIZE, 0x80000)):
        region.base, region.size, region.perm = base, PAGE_SIZE, lib.AVMM_MEM_READ
        region.host = memory.host_address(host, PAGE_SIZE)
    pair = RingPair(memory)
    table = ffi.new("struct avmm_mem *", {"count": 2, "regions": regions})
    for descriptor in (
        Descriptor((1 << 64) - 16, 32),
        Descriptor((1 << 64) - 16, 32, INDIRECT),
    ):
        pair.driver.add_raw([descriptor])
        assert pair.batch.take(pair.queue, table) == lib.AVMM_RING_FAULT
        assert lib.avmm_queue_push_one(pair.queue, 0, 0) == 0
    pair.driver.add_raw([Descriptor((1 << 64) - 16, 16)])
    assert pair.batch.take(pair.queue, table) == lib.AVMM_RING_FAULT  # one byte less than the end, at most
