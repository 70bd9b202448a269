"""Overlays under the driver simulator: whatever is asked of them they end as a model does, now and when they are opened again."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm import DiskConfig
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, Status
from aiovmm.devices.virtio.blk.engine import IoKind
from aiovmm.devices.virtio.blk.extents import Extent
from aiovmm.devices.virtio.blk.overlay.base import Base
from aiovmm.devices.virtio.blk.overlay.chain import open_base
from aiovmm.devices.virtio.blk.overlay.image import OverlayImage
from aiovmm.devices.virtio.blk.protocol import SECTOR, Request
from aiovmm.errors import HostError, ImageError, UsageError
from aiovmm.testing import Harness
from aiovmm.virtqueue.features import INDIRECT_DESC, VERSION_1
from tests.devices.virtio.blk_driver import allocated, contents, get_id, header, read, segments, split, submit, write

MB = 1 << 20


@contextmanager
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


def make_base(path: Path, size: int, rand: random.Random) -> bytes:
    content = rand.randbytes(size)
    path.write_bytes(content)
    return content.ljust(-(-size // SECTOR) * SECTOR, b"\0")


def over(base: Path, overlay: Path, *, readonly: bool = False, **options: Any) -> OverlayImage:
    return OverlayImage.open_over(open_base(base, **options), overlay, readonly=readonly)


class Model:
    """What the disk must hold; see test_blk_properties."""

    def __init__(self, rand: random.Random, content: bytes) -> None:
        self.content = bytearray(content)
        self.rand = rand

    def request(self, first: int, last: int) -> tuple[bytes, int, bytes]:
        rand = self.rand
        sector = rand.randrange(first, last)
        count = rand.randint(0, last - sector)
        span = slice(sector * SECTOR, (sector + count) * SECTOR)
        kind = rand.choice([Request.IN, Request.IN, Request.OUT, Request.OUT, Request.WRITE_ZEROES, Request.DISCARD])
        if kind is Request.IN:
            return header(kind, sector), count * SECTOR, bytes(self.content[span])
        if kind is Request.OUT:
            data = rand.randbytes(count * SECTOR)
            self.content[span] = data
            return header(kind, sector) + data, 0, b""
        self.content[span] = bytes(count * SECTOR)
        return header(kind) + segments((sector, count, kind is Request.WRITE_ZEROES)), 0, b""


async def exercise(h: Harness, model: Model, rand: random.Random, rounds: int) -> None:
    """Requests in many pieces, several at a time, that do not overlap, though they share clusters."""
    sectors = len(model.content) // SECTOR
    for _ in range(rounds):
        expected: dict[tuple[int, int], bytes] = {}
        for first, last in itertools.pairwise(sorted(rand.sample(range(sectors + 1), min(9, sectors)))):
            readable, room, answer = model.request(first, last)
            number = rand.randrange(2)
            cuts = [rand.randint(1, max(1, len(readable) // 2)) for _ in range(rand.randrange(3))]
            writable = [1]
            if room:
                a = rand.randint(0, room)
                writable = [n for n in (a, room - a) if n] + [1]
            head = h.queues[number].add(split(readable, cuts), writable, indirect=rand.random() < 0.5)
            expected[number, head] = answer + b"\0"
        for number, q in enumerate(h.queues):
            q.kick()
            for used in await q.used(q.outstanding):
                assert used.data == expected.pop((number, used.head))
        assert not expected
        if rand.random() < 0.3:
            assert await submit(h, Request.FLUSH) == (Status.OK, b"")


async def whole(h: Harness, sectors: int) -> bytes:
    return b"".join([await read(h, at, min(64, sectors - at) * SECTOR) for at in range(0, sectors, 64)])


def driven(image: DiskImage, kind: IoKind, block: int = 0, features: int = 0) -> tuple[BlkDevice, int]:
    if block:
        image.align = (block, min(block, 512))
    disk = BlkDevice(image, num_queues=2, queue_size=64, io=kind)
    return disk, disk.features & ~features | VERSION_1 | INDIRECT_DESC


@pytest.mark.parametrize("kind", [IoKind.AUTO, IoKind.THREADS], ids=["auto", "threads"])
@pytest.mark.parametrize("block", [0, 512, 4096], ids=["cached", "direct", "direct-4096"])
@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    size=st.sampled_from([128 * SECTOR, 128 * SECTOR, 101 * SECTOR, 100 * SECTOR - 7, 9 * SECTOR]),
    layers=st.integers(1, 3),
    write_through=st.booleans(),
)
async def test_any_requests_end_as_in_a_model_and_stay(
    kind: IoKind, block: int, seed: int, size: int, layers: int, write_through: bool
) -> None:
    rand = random.Random(seed)
    size = size if not block else max(size // 4096, 1) * 4096
    with folder() as place:
        path = place / "base"
        content = make_base(path, size, rand)
        model = Model(rand, content)
        for layer in range(layers):
            before, top = contents(path), place / f"overlay{layer}"
            for _ in range(2):
                image = over(path, top, direct=block > 0, backing_files=True)
                disk, features = driven(image, kind, block, features=1 << 9 if write_through else 0)
                async with Harness(disk, features=features, shuffle=rand) as h:
                    assert await whole(h, len(content) // SECTOR) == model.content
                    await exercise(h, model, rand, 4)
                    assert await whole(h, len(content) // SECTOR) == model.content
            assert path.read_bytes() == before, "the base was written to"
            path = top


@pytest.mark.parametrize("kind", [IoKind.AUTO, IoKind.THREADS], ids=["auto", "threads"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 32))
async def test_forks_of_forks_go_their_own_ways(kind: IoKind, seed: int) -> None:
    rand = random.Random(seed)
    with folder() as place:
        content = make_base(place / "base", 64 * SECTOR, rand)
        disk, features = driven(DiskImage.open(place / "base"), kind)
        parent = Model(rand, content)
        async with Harness(disk, features=features) as h:
            await exercise(h, parent, rand, 2)
            base = await _frozen(disk, h)
        grown: list[tuple[Base, Model]] = [(base, parent)]
        for _ in range(4):
            below, model = rand.choice(grown)
            child = Model(rand, bytes(model.content))
            disk, features = driven(OverlayImage.temporary(below, place), kind)
            async with Harness(disk, features=features) as h:
                assert await whole(h, 64) == model.content
                await exercise(h, child, rand, 3)
                assert await submit(h, Request.FLUSH) == (Status.OK, b"")
                grown.append((await _frozen(disk, h), child))
        for below, model in grown:
            disk, features = driven(OverlayImage.temporary(below, place), kind)
            async with Harness(disk, features=features) as h:
                assert await whole(h, 64) == model.content
        for below, _ in grown:
            below.release()
        assert (place / "base").read_bytes() == parent.content
        assert os.listdir(place) == ["base"], "a temporary overlay has a name"
        DiskImage.open(place / "base").close()  # nobody has it locked


async def _frozen(disk: BlkDevice, h: Harness) -> Base:
    await h.reset()
    return await disk.freeze()


async def test_who_gives_up_freezing_a_disk_has_closed_it(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(1 << 16))
    disk = BlkDevice(DiskImage.open(tmp_path / "base"))
    await disk.open()
    task = asyncio.ensure_future(disk.freeze())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await disk.close()
    DiskImage.open(tmp_path / "base").close()  # nobody has it locked


# -- an overlay as an image ----------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    path.write_bytes(random.Random(1).randbytes(MB))
    return path


async def test_the_configuration_has_one_made_and_opens_it_again(base: Path, tmp_path: Path) -> None:
    config = DiskConfig(path=base, overlay=tmp_path / "top")
    content = contents(base)
    async with Harness(BlkDevice.from_config(config)) as h:
        await write(h, 8, b"new".ljust(SECTOR, b"\0"))
        serial = await get_id(h)
    assert contents(base) == content
    assert allocated(tmp_path / "top") * SECTOR < 64 << 10, "it is as sparse as what was written is"
    async with Harness(BlkDevice.from_config(config)) as h:
        assert (await read(h, 8, SECTOR)).startswith(b"new")
        assert await read(h, 9, 7 * SECTOR) == content[9 * SECTOR : 16 * SECTOR], "the rest of its cluster was lost"
        assert await get_id(h) == serial


async def test_many_share_a_base_and_none_writes_it(base: Path, tmp_path: Path) -> None:
    first = BlkDevice(over(base, tmp_path / "a"))
    second = BlkDevice(over(base, tmp_path / "b"))
    async with Harness(first) as one, Harness(second) as two:
        await write(one, 0, b"a" * SECTOR)
        await write(two, 0, b"b" * SECTOR)
        assert await read(one, 0, SECTOR) == b"a" * SECTOR
        assert await read(two, 0, SECTOR) == b"b" * SECTOR
        DiskImage.open(base, readonly=True).close()
        with pytest.raises(HostError, match="locking"):
            DiskImage.open(base)
        with pytest.raises(HostError, match="locking"):
            over(base, tmp_path / "a")
        with pytest.raises(HostError, match="locking"):
            over(base, tmp_path / "a", readonly=True)
    DiskImage.open(base).close()


async def test_a_read_only_overlay_is_shared_and_never_made(base: Path, tmp_path: Path) -> None:
    top = tmp_path / "top"
    with pytest.raises(HostError, match="opening the overlay"):
        over(base, top, readonly=True)
    async with Harness(BlkDevice(over(base, top))) as h:
        await write(h, 1, b"x" * SECTOR)
    async with (
        Harness(BlkDevice(over(base, top, readonly=True))) as h,
        Harness(BlkDevice(over(base, top, readonly=True))),
    ):
        assert await read(h, 1, SECTOR) == b"x" * SECTOR
        assert (await submit(h, Request.OUT, 1, bytes(SECTOR)))[0] is Status.IOERR


@pytest.mark.parametrize("change", ["content", "size", "file", "time"])
def test_a_base_that_changed_is_refused_with_the_remedy(base: Path, tmp_path: Path, change: str) -> None:
    over(base, tmp_path / "top").close()
    status = base.stat()
    if change == "content":
        base.write_bytes(bytes(MB))
    elif change == "size":
        os.truncate(base, MB // 2)
        os.utime(base, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "file":
        (tmp_path / "copy").write_bytes(base.read_bytes())
        os.replace(tmp_path / "copy", base)
        os.utime(base, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(base, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(ImageError, match="does not fit its base") as refused:
        over(base, tmp_path / "top")
    assert f"aiovmm disk rebase {tmp_path / 'top'} --base {base} --same" in str(refused.value)
    DiskImage.open(base).close()  # and nothing is left locked


def test_a_base_that_is_an_overlay_needs_a_word(base: Path, tmp_path: Path) -> None:
    over(base, tmp_path / "middle").close()
    with pytest.raises(ImageError, match="backing_files=on"):
        over(tmp_path / "middle", tmp_path / "top")
    over(tmp_path / "middle", tmp_path / "top", backing_files=True).close()
    with pytest.raises(ImageError, match="is a copy-on-write overlay image of aiovmm"):
        DiskImage.open(tmp_path / "middle")


def test_an_overlay_that_is_its_own_base_ends(base: Path, tmp_path: Path) -> None:
    over(base, tmp_path / "a").close()
    over(tmp_path / "a", tmp_path / "b", backing_files=True).close()
    os.replace(tmp_path / "b", tmp_path / "a")
    with pytest.raises((ImageError, HostError)):
        over(tmp_path / "a", tmp_path / "c", backing_files=True)


async def test_a_disk_that_shrank_and_grew_has_zeros_there(base: Path, tmp_path: Path) -> None:
    """Neither what the base has there comes back, nor what was written."""
    content = contents(base)
    disk = BlkDevice(over(base, tmp_path / "top"))
    async with Harness(disk) as h:
        await write(h, 1000, b"x" * SECTOR)
        await disk.resize(MB // 2 + SECTOR)
        assert (await submit(h, Request.IN, 1025, room=SECTOR))[0] is Status.IOERR
        await disk.resize(2 * MB)
    async with Harness(BlkDevice(over(base, tmp_path / "top"))) as h:
        assert await read(h, 1000, SECTOR) == b"x" * SECTOR
        assert await read(h, 1024, SECTOR) == content[MB // 2 : MB // 2 + SECTOR]
        assert await read(h, 1025, 512 * SECTOR) == bytes(512 * SECTOR)
        assert await read(h, 4095, SECTOR) == bytes(SECTOR)
        with pytest.raises(UsageError, match="has a map for"):
            await h.device.resize(1 << 45)  # type: ignore[attr-defined]


async def test_trimming_gives_space_back_and_hides_the_base(base: Path, tmp_path: Path) -> None:
    top = tmp_path / "top"
    async with Harness(BlkDevice(over(base, top))) as h:
        empty = allocated(top)
        await write(h, 0, b"x" * MB)
        assert allocated(top) * SECTOR >= MB
        assert (await submit(h, Request.DISCARD, data=segments((0, 2048, 0))))[0] is Status.OK
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
        assert allocated(top) < empty + 64
        assert await read(h, 0, MB) == bytes(MB)
    async with Harness(BlkDevice(over(base, top))) as h:
        assert await read(h, 0, MB) == bytes(MB)


async def test_what_was_not_flushed_may_be_gone_but_not_what_is_beside_it(base: Path, tmp_path: Path) -> None:
    """The map is written with a flush: a copy of the files before that is what a host that lost its power has at most."""
    content = contents(base)
    top, copy = tmp_path / "top", tmp_path / "copy"
    async with Harness(BlkDevice(over(base, top))) as h:
        await write(h, 3, b"a" * SECTOR)
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
        await write(h, 99, b"b" * SECTOR)
        copy.write_bytes(top.read_bytes())
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
    async with Harness(BlkDevice(over(base, copy))) as h:
        assert await read(h, 3, SECTOR) == b"a" * SECTOR
        assert await read(h, 96, 8 * SECTOR) == content[96 * SECTOR : 104 * SECTOR]


async def test_a_temporary_one_flushes_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = open_base(base)
    disk = BlkDevice(OverlayImage.temporary(below, tmp_path))
    below.release()
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    async with Harness(disk) as h:
        await write(h, 0, b"x" * SECTOR)
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
        assert await read(h, 0, SECTOR) == b"x" * SECTOR
        with pytest.raises(HostError):
            DiskImage.open(base)
    assert not synced
    DiskImage.open(base).close()


def test_zeroes_in_one_cluster_leave_the_rest(base: Path, tmp_path: Path) -> None:
    image = over(base, tmp_path / "top")
    assert image.write_zeroes(Extent(4096 + 512, 512, True)) == 0
    image.close()
    again = over(base, tmp_path / "top")
    layer = again.top_layer.native
    assert [layer.map[0]] == [0b10]
    again.close()


@pytest.mark.parametrize("kind", [IoKind.AUTO, IoKind.THREADS], ids=["auto", "threads"])
@pytest.mark.parametrize("every", [100, 3, 1], ids=["writes", "both", "zeroes"])
async def test_parts_of_one_cluster_written_at_the_same_time(
    kind: IoKind, every: int, base: Path, tmp_path: Path
) -> None:
    """Each brings the rest of the cluster from below, and none may bring it over what another has written. In an order in which
    all threads would be at the same cluster at once."""
    for round_ in range(25):
        model = bytearray(contents(base))
        below = open_base(base)
        image = OverlayImage.temporary(below, tmp_path)
        below.release()
        async with Harness(BlkDevice(image, queue_size=256, io=kind)) as h:
            queue = h.queues[0]
            for sector in (8 * cluster + part for part in range(8) for cluster in range(8)):
                span = slice(sector * SECTOR, (sector + 1) * SECTOR)
                if (sector + round_) % every == 0:
                    model[span] = bytes(SECTOR)
                    queue.add([header(Request.WRITE_ZEROES) + segments((sector, 1, 1))], [1])
                else:
                    model[span] = bytes([round_ + 1]) * SECTOR
                    queue.add([header(Request.OUT, sector) + model[span]], [1])
            queue.kick()
            assert all(used.data == b"\0" for used in await queue.used(queue.outstanding))
            assert await read(h, 0, 64 * SECTOR) == model[: 64 * SECTOR]
