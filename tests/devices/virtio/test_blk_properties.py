"""Any mix of requests, of any framing, many at once: the disk ends as a model of it does."""

from __future__ import annotations

import itertools
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, Status
from aiovmm.devices.virtio.blk.engine import IoKind
from aiovmm.devices.virtio.blk.extents import Extent, parse_extents
from aiovmm.devices.virtio.blk.protocol import SECTOR, Request
from aiovmm.testing import Harness
from aiovmm.virtqueue.features import EVENT_IDX, INDIRECT_DESC, VERSION_1
from tests.devices.virtio.blk_driver import contents, header, segments, split

SECTORS = 128


@contextmanager
def image_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "disk"
        path.write_bytes(bytes(SECTORS * SECTOR))
        yield path


class Model:
    """What the disk must hold. Requests in one flight must not overlap, or their order would matter."""

    def __init__(self, rand: random.Random) -> None:
        self.content = bytearray(SECTORS * SECTOR)
        self.rand = rand

    def request(self, first: int, last: int) -> tuple[bytes, int, bytes]:
        """A request on sectors [first, last): all that the device reads, the data it returns at most, and what that is."""
        rand = self.rand
        sector = rand.randrange(first, last)
        count = rand.randint(0, last - sector)
        span = slice(sector * SECTOR, (sector + count) * SECTOR)
        kind = rand.choice([Request.IN, Request.OUT, Request.OUT, Request.FLUSH, Request.WRITE_ZEROES, Request.DISCARD])
        if kind is Request.IN:
            return header(kind, sector), count * SECTOR, bytes(self.content[span])
        if kind is Request.OUT:
            data = rand.randbytes(count * SECTOR)
            self.content[span] = data
            return header(kind, sector) + data, 0, b""
        if kind is Request.FLUSH:
            return header(kind), 0, b""
        self.content[span] = bytes(count * SECTOR)  # what a file that was punched reads as
        return header(kind) + segments((sector, count, kind is Request.WRITE_ZEROES)), 0, b""


def pieces(rand: random.Random, size: int, most: int) -> list[int]:
    """Sizes that add up to `size`, at most `most` of them, some of them tiny."""
    cuts = sorted(rand.choice([1, 15, 16, 17, rand.randint(0, size)]) % (size + 1) for _ in range(rand.randrange(most)))
    return [b - a for a, b in zip([0, *cuts], [*cuts, size], strict=True)]


@pytest.mark.parametrize("kind", [IoKind.AUTO, IoKind.THREADS], ids=["auto", "threads"])
@pytest.mark.parametrize("block", [0, 512, 4096], ids=["cached", "direct", "direct-4096"])
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    features=st.sampled_from([0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC]),
    start=st.sampled_from([0, 65530]),
)
async def test_requests_of_every_framing_overlapping_in_time(
    kind: IoKind, block: int, seed: int, features: int, start: int
) -> None:
    rand = random.Random(seed)
    model = Model(rand)
    with image_file() as path:
        image = DiskImage.open(path, direct=block > 0)
        image.align = (block, min(block, 512))
        disk = BlkDevice(image, num_queues=2, queue_size=64, io=kind)
        offered = disk.features | features | VERSION_1
        async with Harness(disk, features=offered, start=start, shuffle=rand) as h:
            for _ in range(6):
                expected: dict[tuple[int, int], bytes] = {}
                regions = sorted(rand.sample(range(SECTORS + 1), 9))
                for first, last in itertools.pairwise(regions):
                    readable, room, answer = model.request(first, last)
                    number = rand.randrange(2)
                    parts = split(readable, pieces(rand, len(readable), 4)[:-1])
                    writable = pieces(rand, room + 1, 4)
                    indirect = bool(features & INDIRECT_DESC) and rand.random() < 0.5
                    head = h.queues[number].add(parts, writable, indirect=indirect)
                    expected[number, head] = answer + b"\0"
                    if rand.random() < 0.5:
                        h.queues[number].kick()
                for number, q in enumerate(h.queues):
                    q.kick()
                    for used in await q.used(q.outstanding):
                        assert used.data == expected.pop((number, used.head))
                assert not expected
        assert contents(path) == model.content


@given(payload=st.binary(max_size=200), kind=st.sampled_from([Request.DISCARD, Request.WRITE_ZEROES]))
@settings(max_examples=300)
def test_extents_are_inside_the_disk_whatever_the_payload(payload: bytes, kind: Request) -> None:
    result = parse_extents(kind, payload, 1000)
    if isinstance(result, list):
        assert all(e.offset >= 0 and e.size > 0 and e.offset + e.size <= 1000 * SECTOR for e in result)
        assert kind is Request.WRITE_ZEROES or not any(e.unmap for e in result)
    else:
        assert result in (Status.IOERR, Status.UNSUPP)


@given(
    st.lists(st.tuples(st.integers(0, 999), st.integers(1, 1000), st.booleans()), min_size=1, max_size=64),
)
def test_good_extents_come_back_as_they_were(extents: list[tuple[int, int, bool]]) -> None:
    extents = [(first, min(count, 1000 - first), unmap) for first, count, unmap in extents]
    payload = segments(*[(first, count, int(unmap)) for first, count, unmap in extents])
    expected = [Extent(first * SECTOR, count * SECTOR, unmap) for first, count, unmap in extents]
    assert parse_extents(Request.WRITE_ZEROES, payload, 1000) == expected


@pytest.mark.parametrize("kind", [IoKind.AUTO, IoKind.THREADS], ids=["auto", "threads"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32))
async def test_garbage_breaks_the_device_or_is_answered(kind: IoKind, seed: int) -> None:
    """Headers and payloads at random: a status byte each, and the disk goes on."""
    rand = random.Random(seed)
    with image_file() as path:
        disk = BlkDevice(DiskImage.open(path), io=kind)
        async with Harness(disk) as h:
            q = h.queues[0]
            for _ in range(10):
                word = rand.choice([0, 1, 4, 8, 11, 13, rand.getrandbits(32)])
                sector = rand.choice([0, 127, 128, rand.getrandbits(64)])
                payload = rand.choice([b"", os.urandom(rand.randrange(1, 1100)), bytes(512)])
                q.add([header(word, sector) + payload], [rand.choice([1, 513, rand.randrange(1, 2000)])])
            q.kick()
            for used in await q.used(10):
                assert used.buffers[0][-1] in (0, 1, 2)
                assert used.length <= len(used.buffers[0])
