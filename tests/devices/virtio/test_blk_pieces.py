"""Requests that an IOMMU cuts into thousands of pieces: bounded in time and memory, and all of them answered."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, Status
from aiovmm.devices.virtio.blk.engine import IoKind
from aiovmm.devices.virtio.blk.protocol import Request
from aiovmm.errors import ChainError
from aiovmm.memory import PAGE_SIZE, GuestMemory
from aiovmm.native import ffi, lib
from aiovmm.testing import Harness
from aiovmm.virtqueue.driver import NEXT, WRITE, Descriptor
from tests.devices.virtio.blk_driver import header, read
from tests.limits import HANGS
from tests.virtqueue.pieces import IOVA, OnePageManyTimes

PIECES = 16000  # 62.5 MiB: a request that the disk serves
SEGMENTS = 1 << 16  # what one call looks at
GROWN = 1 << 18  # iovecs, for all requests of a disk


class NativeDisk:
    """A queue of 128 whose only request, PIECES pages to read, is offered as often as the ring takes it; no threads."""

    def __init__(self) -> None:
        self.memory = GuestMemory.create([(0, 1 << 20)])
        space = OnePageManyTimes(self.memory, 0x20000, PIECES)
        self.memory.write(0x10000, header(Request.IN))
        chain = [
            Descriptor(0x10000, 16, NEXT, 1),
            Descriptor(IOVA, PIECES * PAGE_SIZE, NEXT | WRITE, 2),
            Descriptor(0x10100, 1, WRITE),
        ]
        self.memory.write(0, b"".join(d.pack() for d in chain))
        self.memory.write(0x1000, struct.pack("<HH", 0, 128) + bytes(256))
        self.vq = ffi.new("struct avmm_queue *", {"size": 128, "max_chain": 128})
        for part, at, size, perm in (("desc", 0, 2048, 1), ("avail", 0x1000, 262, 1), ("used", 0x2000, 1030, 3)):
            address = ffi.addressof(self.vq, part)
            assert lib.avmm_ring_bind(address, space.table, at, size, perm, ffi.NULL) == 0
        self.disk = ffi.new("struct avmm_blk *", {"capacity": 1 << 30, "max_bytes": 64 << 20, "fd": -1})
        self.queue = ffi.new("struct avmm_blk_queue *")
        self.queue.disk, self.queue.vq, self.queue.mem, self.queue.bit = self.disk, self.vq, space.table, 1
        self._space = space
        assert lib.avmm_blk_queue_open(self.queue, 128, 132) == 0

    def finish(self) -> int:
        """Answer all that is in flight; how many."""
        n: int = self.queue.n_handed
        for slot in ffi.unpack(self.queue.handed, n):
            lib.avmm_blk_finish(self.queue.slots + slot, 0)
        self.queue.n_handed = 0
        lib.avmm_blk_publish(self.disk)
        return n

    def close(self) -> None:
        lib.avmm_blk_queue_close(self.queue)
        self.memory.close()


def test_one_call_looks_at_a_bounded_number_of_segments() -> None:
    disk = NativeDisk()
    mask = lib.avmm_blk_serve(disk.queue)
    assert mask & lib.AVMM_BLK_MORE, "who calls does not learn that chains are left"
    assert 1 <= disk.vq.popped <= SEGMENTS // PIECES + 1
    disk.finish()
    disk.close()


def test_requests_in_many_pieces_hold_a_bounded_amount_of_memory() -> None:
    disk = NativeDisk()
    turns = answered = 0
    while disk.vq.pushed < 128:
        while lib.avmm_blk_can_take(disk.queue) and lib.avmm_queue_available(disk.vq):
            lib.avmm_blk_serve(disk.queue)
            assert not disk.queue.malformed
            assert disk.disk.grown <= GROWN
        turns += 1
        answered += disk.finish()
        assert disk.disk.grown == 0
    assert answered == 128
    assert turns >= 128 * PIECES // GROWN
    disk.close()


@pytest.fixture(params=[IoKind.AUTO, IoKind.THREADS], ids=lambda k: k.value)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> BlkDevice:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    return BlkDevice(DiskImage.open(path), io=request.param)


def offer(h: Harness, count: int, pieces: int) -> None:
    """`count` reads of so many pages."""
    q = h.queues[0]
    h.memory.write(0x200000, header(Request.IN))
    for first in range(0, 3 * count, 3):
        q.put(first, Descriptor(0x200000, 16, NEXT, first + 1))
        q.put(first + 1, Descriptor(IOVA, pieces * PAGE_SIZE, NEXT | WRITE, first + 2))
        q.put(first + 2, Descriptor(0x201000 + first, 1, WRITE))
        h.memory.write(0x201000 + first, b"\xff")
        q.offer(first)
    q.kick()


async def test_all_requests_in_many_pieces_are_answered(disk: BlkDevice) -> None:
    h = Harness(disk)
    h.device_memory = OnePageManyTimes(h.memory, 0x300000, PIECES)
    async with h:
        offer(h, 20, PIECES)  # more than are in flight at once
        assert len(await h.queues[0].used(20, timeout=HANGS)) == 20
        assert [h.memory.read(0x201000 + 3 * i, 1)[0] for i in range(20)] == [Status.OK] * 20
        assert disk._disk.grown == 0
        assert disk._disk.in_flight == 0


async def test_a_chain_in_more_pieces_than_the_largest_request_has_breaks_the_device(disk: BlkDevice) -> None:
    h = Harness(disk)
    h.device_memory = OnePageManyTimes(h.memory, 0x300000, 20000)
    async with h:
        offer(h, 1, 20000)
        error = await asyncio.wait_for(h.broken(), HANGS)
        assert isinstance(error, ChainError)
        assert "pieces" in str(error)
        await h.reset()
        await h.start()
        assert await read(h, 0, 512) == bytes(512)
