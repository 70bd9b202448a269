"""The block device as a driver sees it (VIRTIO 1.2 §5.2), through io_uring and through threads."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import threading
import time
from pathlib import Path

import pytest

from aiovmm import DiskConfig
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, Status
from aiovmm.devices.virtio.blk.engine import IoKind
from aiovmm.devices.virtio.blk.protocol import Feature, Request
from aiovmm.errors import ChainError, GuestFault, HostError, StateError, UsageError
from aiovmm.native import ffi, lib
from aiovmm.testing import Harness
from aiovmm.virtqueue.driver import NEXT, WRITE, Descriptor
from aiovmm.virtqueue.features import RING_FEATURES
from aiovmm.virtqueue.status import Effect
from tests.devices.virtio.blk_driver import allocated, contents, get_id, header, read, segments, submit, write
from tests.limits import HANGS
from tests.open_files import descriptors

SIZE = 1 << 20
KINDS = [IoKind.URING, IoKind.THREADS]


@pytest.fixture(params=KINDS, ids=lambda k: k.value)
def kind(request: pytest.FixtureRequest) -> IoKind:
    """Tests run with io_uring and with threads; a kernel that has no io_uring leaves the first out."""
    kind: IoKind = request.param
    if kind is IoKind.URING:
        ring = ffi.new("struct avmm_uring *")
        error = -lib.avmm_uring_open(ring, 1, 1)
        if error:
            pytest.skip(f"io_uring: {os.strerror(error)}")
        lib.avmm_uring_close(ring)
    return kind


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def disk(path: Path, kind: IoKind) -> BlkDevice:
    return BlkDevice(DiskImage.open(path), serial="serial-0", io=kind)


async def test_sectors_are_read_where_they_are(disk: BlkDevice, path: Path) -> None:
    content = contents(path)
    async with Harness(disk) as h:
        for sector, size in ((0, 512), (1, 512), (7, 4096), (100, 65536), (2047, 512)):
            assert await read(h, sector, size) == content[sector * 512 : sector * 512 + size]
        assert disk.counters.reads == 5


async def test_what_is_written_is_in_the_image_and_nothing_else_changed(disk: BlkDevice, path: Path) -> None:
    content = bytearray(contents(path))
    async with Harness(disk) as h:
        for sector, size in ((0, 512), (9, 8192), (2040, 4096)):
            data = os.urandom(size)
            await write(h, sector, data)
            content[sector * 512 : sector * 512 + size] = data
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
    assert contents(path) == content
    assert disk.counters.flushes == 1
    assert disk.counters.written_bytes == 512 + 8192 + 4096


async def test_get_id(disk: BlkDevice) -> None:
    async with Harness(disk) as h:
        assert await get_id(h) == b"serial-0".ljust(20, b"\0")
        assert await submit(h, Request.GET_ID, room=4) == (Status.OK, b"seri")


@pytest.mark.parametrize("sector", [2048, 2047, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("request_", [Request.IN, Request.OUT])
async def test_beyond_the_end_is_an_io_error(disk: BlkDevice, path: Path, request_: Request, sector: int) -> None:
    before = contents(path)
    data, room = (bytes(1024), 0) if request_ is Request.OUT else (b"", 1024)
    async with Harness(disk) as h:
        assert await submit(h, request_, sector, data, room) == (Status.IOERR, b"")
        assert disk.counters.errors == 1
    assert contents(path) == before


@pytest.mark.parametrize("request_", [Request.IN, Request.OUT])
async def test_data_that_is_no_multiple_of_a_sector_is_an_io_error(disk: BlkDevice, request_: Request) -> None:
    data, room = (bytes(700), 0) if request_ is Request.OUT else (b"", 700)
    async with Harness(disk) as h:
        assert (await submit(h, request_, 0, data, room))[0] is Status.IOERR


async def test_no_data_at_all_is_fine(disk: BlkDevice) -> None:
    async with Harness(disk) as h:
        assert await submit(h, Request.IN, 2048) == (Status.OK, b"")
        assert await submit(h, Request.OUT, 5) == (Status.OK, b"")


@pytest.mark.parametrize("number", [2, 3, 5, 7, 9, 10, 14, 15, 0x80000000, 0xFFFFFFFF])
async def test_unknown_requests_are_unsupported(disk: BlkDevice, number: int) -> None:
    async with Harness(disk) as h:
        assert await submit(h, number, 0, bytes(512), 512) == (Status.UNSUPP, b"")
        assert await read(h, 0, 512)


async def test_a_read_only_disk(path: Path, kind: IoKind) -> None:
    before = contents(path)
    disk = BlkDevice(DiskImage.open(path, readonly=True), io=kind)
    assert disk.features & Feature.RO
    assert not disk.features & (Feature.DISCARD | Feature.WRITE_ZEROES)
    async with Harness(disk) as h:
        assert await submit(h, Request.OUT, 0, bytes(512)) == (Status.IOERR, b"")
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
        assert (await submit(h, Request.DISCARD, 0, segments((0, 8, 0))))[0] is Status.UNSUPP
        assert await read(h, 0, 4096) == before[:4096]
    assert contents(path) == before


# -- discard and zeroes --------------------------------------------------------------------------------------------------


async def test_discarded_blocks_leave_the_file(disk: BlkDevice, path: Path) -> None:
    async with Harness(disk) as h:
        before = allocated(path)
        status, _ = await submit(h, Request.DISCARD, 0, segments((64, 256, 0), (1024, 512, 0)))
        assert status is Status.OK
        assert allocated(path) == before - 256 - 512
        assert os.stat(path).st_size == SIZE
        assert await read(h, 64, 4096) == bytes(4096)


@pytest.mark.parametrize("unmap", [0, 1])
async def test_zeroed_blocks_read_as_zeros_and_go_only_if_they_may(disk: BlkDevice, path: Path, unmap: int) -> None:
    content = contents(path)
    async with Harness(disk) as h:
        before = allocated(path)
        status, _ = await submit(h, Request.WRITE_ZEROES, 0, segments((3, 10, unmap), (64, 256, unmap)))
        assert status is Status.OK
        assert await read(h, 0, 64 * 512) == content[:1536] + bytes(5120) + content[6656 : 64 * 512]
        assert await read(h, 64, 256 * 512) == bytes(256 * 512)
        assert (allocated(path) < before) == bool(unmap)


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b"", Status.IOERR),
        (bytes(15), Status.IOERR),
        (bytes(17), Status.IOERR),
        (segments(*[(0, 1, 0)] * 65), Status.IOERR),
        (segments((0, 1, 0), (2048, 1, 0)), Status.IOERR),
        (segments((2047, 2, 0)), Status.IOERR),
        (segments(((1 << 64) - 1, 1, 0)), Status.IOERR),
        (segments((0, 0xFFFFFFFF, 0)), Status.IOERR),
        (segments((0, 1, 2)), Status.UNSUPP),
        (segments((0, 8, 1)), Status.UNSUPP),
        (segments((0, 0, 0)), Status.OK),
    ],
)
async def test_bad_discards_change_nothing(disk: BlkDevice, path: Path, payload: bytes, status: Status) -> None:
    before = contents(path)
    async with Harness(disk) as h:
        assert (await submit(h, Request.DISCARD, 0, payload))[0] is status
    assert contents(path) == before


async def test_discard_is_unsupported_unless_negotiated(disk: BlkDevice) -> None:
    async with Harness(disk, features=RING_FEATURES) as h:
        assert (await submit(h, Request.DISCARD, 0, segments((0, 8, 0))))[0] is Status.UNSUPP
        assert (await submit(h, Request.WRITE_ZEROES, 0, segments((0, 8, 0))))[0] is Status.UNSUPP


# -- configuration space -------------------------------------------------------------------------------------------------


def config(disk: BlkDevice) -> dict[str, int]:
    names = "capacity size_max seg_max cylinders heads sectors blk_size physical_block_exp alignment_offset min_io_size"
    names += " opt_io_size writeback unused num_queues max_discard_sectors max_discard_seg discard_sector_alignment"
    names += " max_write_zeroes_sectors max_write_zeroes_seg write_zeroes_may_unmap"
    return dict(zip(names.split(), struct.unpack("<QIIHBBIBBHIBBHIIIIIB", disk.read_config(0, 57)), strict=True))


async def test_the_configuration_space(path: Path) -> None:
    disk = BlkDevice(DiskImage.open(path), num_queues=4, queue_size=64)
    c = config(disk)
    await disk.close()
    assert c["capacity"] == 2048
    assert c["seg_max"] == 62  # queue size less header and status
    assert c["blk_size"] == 512
    assert c["blk_size"] << c["physical_block_exp"] == os.stat(path).st_blksize
    assert c["writeback"] == 1
    assert c["num_queues"] == 4
    assert c["max_discard_seg"] == c["max_write_zeroes_seg"] == 64
    assert c["discard_sector_alignment"] * 512 == os.stat(path).st_blksize
    assert c["write_zeroes_may_unmap"] == 1
    assert disk.features & Feature.MQ
    assert disk.read_config(58, 200) == bytes(200)


async def test_only_the_cache_mode_can_be_written(disk: BlkDevice) -> None:
    async with Harness(disk):
        before = config(disk)
        for offset in range(64):
            if offset != 32:
                disk.write_config(offset, b"\xff")
        assert config(disk) == before
        disk.write_config(30, b"\xff\xff\x00\xff")
        assert config(disk) == before | {"writeback": 0}


async def test_write_through_is_what_a_driver_without_flush_gets(disk: BlkDevice) -> None:
    features = (disk.features | RING_FEATURES) & ~int(Feature.FLUSH)
    async with Harness(disk, features=features) as h:
        assert config(disk)["writeback"] == 0
        assert disk._disk.write_through
        await write(h, 0, bytes(512))
        await h.reset()
        assert config(disk)["writeback"] == 1


async def test_the_driver_switches_the_cache_mode(disk: BlkDevice, path: Path) -> None:
    async with Harness(disk) as h:
        assert not disk._disk.write_through
        disk.write_config(32, b"\0")
        assert disk._disk.write_through
        data = os.urandom(4096)
        await write(h, 8, data)
        assert (await submit(h, Request.WRITE_ZEROES, 0, segments((0, 8, 1))))[0] is Status.OK
        disk.write_config(32, b"\1")
        assert not disk._disk.write_through
    assert contents(path)[:8192] == bytes(4096) + data


async def test_the_cache_mode_cannot_be_switched_unless_negotiated(disk: BlkDevice) -> None:
    async with Harness(disk, features=(disk.features | RING_FEATURES) & ~int(Feature.CONFIG_WCE)):
        disk.write_config(32, b"\0")
        assert config(disk)["writeback"] == 1
        assert not disk._disk.write_through


async def test_what_lasts_of_the_configuration_does_whatever_becomes_of_the_rest(disk: BlkDevice) -> None:
    async with Harness(disk):
        before, lasting = disk.read_config(0, 64), [disk.read_config(*part) for part in disk.lasting_config]
        disk.accepts(disk.features)
        await disk.resize(2 * SIZE)
        disk.write_config(32, b"\0")
        after = disk.read_config(0, 64)
        assert [at for at in range(64) if before[at] != after[at]] == [1, 32]
        assert [disk.read_config(*part) for part in disk.lasting_config] == lasting


# -- size ----------------------------------------------------------------------------------------------------------------


async def test_a_disk_grows_while_it_runs(disk: BlkDevice, path: Path) -> None:
    async with Harness(disk) as h:
        assert (await submit(h, Request.IN, 2048, room=512))[0] is Status.IOERR
        await disk.resize(2 * SIZE)
        assert h.config_irq.pulses == 1
        assert config(disk)["capacity"] == 4096
        assert disk.capacity == 2 * SIZE
        assert await read(h, 4095, 512) == bytes(512)
        os.truncate(path, 3 * SIZE)
        await disk.refresh()
        assert h.config_irq.pulses == 2
        await disk.refresh()
        assert h.config_irq.pulses == 2
        await write(h, 6143, b"e" * 512)
    assert contents(path)[-512:] == b"e" * 512


async def test_a_disk_shrinks_while_it_runs(disk: BlkDevice) -> None:
    async with Harness(disk) as h:
        await disk.resize(SIZE // 2)
        assert (await submit(h, Request.IN, 1024, room=512))[0] is Status.IOERR
        assert await read(h, 1023, 512)


async def test_resizing_what_cannot_be(path: Path, disk: BlkDevice) -> None:
    async with Harness(disk):
        for size in (0, -512, 100):
            with pytest.raises(UsageError):
                await disk.resize(size)
    with pytest.raises(StateError):
        await disk.resize(512)
    async with Harness(readonly := BlkDevice(DiskImage.open(path, readonly=True))):
        with pytest.raises(UsageError, match="reading only"):
            await readonly.resize(512)


async def test_the_last_sector_of_an_odd_file_is_filled_with_zeros(tmp_path: Path, kind: IoKind) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 1000)
    disk = BlkDevice(DiskImage.open(path), io=kind)
    async with Harness(disk) as h:
        assert disk.capacity == 1024
        assert await read(h, 0, 1024) == b"x" * 1000 + bytes(24)
        assert await read(h, 1, 512) == b"x" * 488 + bytes(24)
        await write(h, 1, b"y" * 512)
    assert contents(path) == b"x" * 512 + b"y" * 512


# -- errors of the host ----------------------------------------------------------------------------------------------------


async def test_a_file_that_shrinks_behind_our_back_is_an_io_error(disk: BlkDevice, path: Path) -> None:
    async with Harness(disk) as h:
        os.truncate(path, 4096)
        status, data = await submit(h, Request.IN, 0, room=8192)
        assert status is Status.IOERR
        assert len(data) <= 4096
        assert await read(h, 0, 4096)


async def test_a_full_host_is_an_io_error(path: Path, kind: IoKind, tmp_path: Path) -> None:
    """/dev/full says ENOSPC to every write."""
    image = DiskImage.open(path)
    full = os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC)
    disk = BlkDevice(image, io=kind)
    disk._disk.fd = full
    async with Harness(disk) as h:
        assert await submit(h, Request.OUT, 0, bytes(4096)) == (Status.IOERR, b"")
        assert disk.counters.errors == 1
        assert await submit(h, Request.IN, disk.capacity // 512, room=512) == (Status.IOERR, b"")
        (error,) = h.reported  # and none of what is the guest's fault
    os.close(full)
    assert isinstance(error, HostError)
    assert (error.errno, error.filename) == (errno.ENOSPC, str(path))
    assert "writing the disk image: No space left on device" in str(error)


async def test_a_medium_error_is_an_io_error(path: Path, kind: IoKind, tmp_path: Path) -> None:
    """Any errno will do: here that of an fd that cannot be read."""
    image = DiskImage.open(path)
    disk = BlkDevice(image, io=kind)
    wrong = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    disk._disk.fd = wrong
    async with Harness(disk) as h:
        assert await submit(h, Request.IN, 0, room=4096) == (Status.IOERR, b"")
        assert ["reading" in str(error) for error in h.reported] == [True]
    os.close(wrong)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (0, Status.OK),
        (errno.EIO, Status.IOERR),
        (errno.ENOSPC, Status.IOERR),
        (errno.EOPNOTSUPP, Status.UNSUPP),
        (errno.ENOTTY, Status.UNSUPP),
        (errno.EINVAL, Status.IOERR),
    ],
)
def test_every_errno_has_a_status(number: int, status: Status) -> None:
    assert lib.avmm_blk_status(number) == status


# -- malformed chains ------------------------------------------------------------------------------------------------------


async def test_a_chain_without_status_byte_breaks_the_device(disk: BlkDevice) -> None:
    async with Harness(disk) as h:
        q = h.queues[0]
        q.add([header(Request.OUT), bytes(512)])
        q.kick()
        assert isinstance(error := await h.broken(), ChainError)
        assert "status" in str(error)
        (used,) = q.poll()
        assert used.length == 0
        await h.reset()
        await h.start()
        assert await read(h, 0, 512)


@pytest.mark.parametrize("head", [b"", bytes(15)])
async def test_a_chain_without_header_breaks_the_device(disk: BlkDevice, head: bytes) -> None:
    async with Harness(disk) as h:
        h.queues[0].add([head] if head else [], [513])
        h.queues[0].kick()
        assert "header" in str(await h.broken())


async def test_a_buffer_outside_memory_breaks_the_device_after_what_came_before(disk: BlkDevice) -> None:
    async with Harness(disk) as h:
        q = h.queues[0]
        flush = q.add([header(Request.FLUSH)], [1])
        chain = [
            Descriptor(0x100000, 16, NEXT, 11),
            Descriptor(1 << 40, 512, NEXT | WRITE, 12),
            Descriptor(0x100100, 1, WRITE),
        ]
        for i, descriptor in enumerate(chain, 10):
            q.put(i, descriptor)
        q.offer(10)
        q.kick()
        assert isinstance(await h.broken(), GuestFault)
        returned = {used.head: used for used in q.poll()}
        assert returned[flush].buffers == [b"\0"]
        assert returned[10].length == 0


async def test_one_broken_queue_ends_all(path: Path, kind: IoKind) -> None:
    disk = BlkDevice(DiskImage.open(path), num_queues=3, io=kind)
    async with Harness(disk) as h:
        assert await read(h, 0, 512, queue=2)
        h.queues[1].add([bytes(3)], [1])
        h.queues[1].kick()
        assert isinstance(await h.broken(), ChainError)
        await h.reset()
        await h.start()
        assert await read(h, 0, 512, queue=1)


# -- life ------------------------------------------------------------------------------------------------------------------


async def test_reset_under_load_two_hundred_times(path: Path, kind: IoKind) -> None:
    disk = BlkDevice(DiskImage.open(path), num_queues=2, queue_size=64, io=kind)
    async with Harness(disk) as h:
        await asyncio.sleep(0)
        fds = descriptors()
        for _ in range(200):
            for q in h.queues:
                for i in range(16):
                    q.add([header(Request.IN, 8 * i)], [4096, 1])
                q.add([header(Request.WRITE_ZEROES), segments((0, 8, 1))], [1])
                q.kick()
            await asyncio.sleep(0)
            await h.reset()
            assert disk._disk.in_flight == 0
            await h.start()
        assert await read(h, 0, 4096) == bytes(4096)
        assert descriptors() <= fds


async def test_more_requests_than_slots(path: Path, kind: IoKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiovmm.devices.virtio.blk.device.MAX_IN_FLIGHT", 4)
    disk = BlkDevice(DiskImage.open(path), queue_size=256, io=kind)
    content = contents(path)
    async with Harness(disk) as h:
        q = h.queues[0]
        where = {q.add([header(Request.IN, 8 * i)], [4096, 1]): 4096 * i for i in range(80)}
        q.kick()
        for used in await q.used(80):
            at = where[used.head]
            assert used.data == content[at : at + 4096] + b"\0"
        assert disk._disk.in_flight == 0


async def test_the_image_is_opened_by_open_and_unlocked_by_close(path: Path) -> None:
    disk = BlkDevice.from_config(DiskConfig(path=path, serial="s", num_queues=2, queue_size=32), "root")
    assert disk.name == "root"
    assert disk.queue_sizes == (32, 32)
    await disk.open()
    with pytest.raises(HostError, match="readonly=on"):
        DiskImage.open(path)
    await disk.close()
    await disk.close()
    DiskImage.open(path).close()


async def test_opening_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    disk = BlkDevice.from_config(DiskConfig(path=tmp_path / "absent"))
    fds = descriptors()
    with pytest.raises(HostError, match="truncate"):
        await disk.open()
    await disk.close()
    assert descriptors() <= fds


async def test_write_through_makes_stable_what_was_written_before(
    disk: BlkDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes = asyncio.Queue[None]()
    loop = asyncio.get_running_loop()
    image = disk._image
    assert image is not None

    def flush() -> int:
        loop.call_soon_threadsafe(flushes.put_nowait, None)
        return 0

    monkeypatch.setattr(image, "flush", flush)
    async with Harness(disk) as h:
        await write(h, 0, bytes(512))
        for _ in range(1000):  # as fast as a guest can; none of them is queued without bound
            disk.write_config(32, b"\0")
            disk.write_config(32, b"\1")
        disk.write_config(32, b"\0")
        await asyncio.wait_for(flushes.get(), HANGS)
        assert disk._engine is not None
        assert disk._engine.threads(None).waiting <= 1
        monkeypatch.setattr(image, "flush", lambda: errno.EIO)
        disk.write_config(32, b"\1")
        disk.write_config(32, b"\0")
        assert isinstance(await h.broken(), HostError)


async def test_the_switch_to_write_through_ends_with_its_flush(
    disk: BlkDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = disk._image
    assert image is not None
    started, go_on = threading.Event(), threading.Event()

    def flush() -> int:
        started.set()
        go_on.wait(HANGS)
        return 0

    monkeypatch.setattr(image, "flush", flush)
    async with Harness(disk) as h:
        await write(h, 0, bytes(512))
        switched = disk.write_config(32, b"\0")
        assert switched is not None
        waiting = asyncio.ensure_future(switched)
        await asyncio.to_thread(started.wait, 10)
        assert not waiting.done(), "what was written is not stable yet"
        go_on.set()
        await asyncio.wait_for(waiting, HANGS)
        monkeypatch.setattr(image, "flush", lambda: errno.EIO)
        disk.write_config(32, b"\1")
        switched = disk.write_config(32, b"\0")
        assert switched is not None
        await asyncio.wait_for(asyncio.ensure_future(switched), HANGS)  # a device that broke keeps no processor waiting
        assert isinstance(await h.broken(), HostError)


async def test_opening_that_is_cancelled_leaves_nothing_open(path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow() -> DiskImage:
        started.set()
        go_on.wait(HANGS)
        return DiskImage.open(path)

    disk = BlkDevice(slow)
    opening = asyncio.ensure_future(disk.open())
    await asyncio.to_thread(started.wait, 10)
    opening.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    DiskImage.open(path).close()


async def test_an_available_index_that_runs_away_breaks_the_device(disk: BlkDevice) -> None:
    async with Harness(disk) as h:
        assert await read(h, 0, 512)
        h.queues[0].publish(1000)
        h.queues[0].kick(force=True)
        assert isinstance(await h.broken(), ChainError)


async def test_a_disabled_queue_is_left_alone(path: Path, kind: IoKind) -> None:
    """The driver sets up fewer queues than there are: Linux with fewer CPUs."""
    disk = BlkDevice(DiskImage.open(path), num_queues=3, io=kind)
    async with Harness(disk) as h:
        await h.reset()
        original = h.negotiation.write_status

        def write_status(value: int) -> list[Effect]:
            if value & 4:
                h.negotiation.queues[2].ready = False
            return original(value)

        h.negotiation.write_status = write_status  # type: ignore[method-assign]
        await h.start()
        assert not h.runner.queues[2].enabled
        assert await read(h, 0, 512, queue=1)


async def test_reset_does_not_wait_for_what_takes_long(disk: BlkDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 GiB of zeros, on a file system that can but write them, in as many requests as there can be."""
    started = threading.Event()
    chunks = []

    def pwrite(_fd: int, data: bytes, _at: int) -> int:
        started.set()
        chunks.append(len(data))
        time.sleep(0.001)
        return 4096

    monkeypatch.setattr("aiovmm.devices.virtio.blk.image._ZERO_RANGE", 0x4000)  # no such mode
    monkeypatch.setattr("aiovmm.devices.virtio.blk.image.os.pwrite", pwrite)
    async with Harness(disk) as h:
        await disk.resize(1 << 40)
        payload = segments(*[(i << 21, 1 << 21, 0) for i in range(64)])
        for _ in range(32):
            h.queues[0].add([header(Request.WRITE_ZEROES), payload], [1])
        h.queues[0].kick()
        await asyncio.to_thread(started.wait, 10)
        async with asyncio.timeout(HANGS):
            await h.reset()
        assert chunks
        await h.start()
        monkeypatch.undo()
        assert await read(h, 0, 512)


async def test_reset_cancels_reads_and_writes(tmp_path: Path, kind: IoKind) -> None:
    """As many of the largest requests as there can be, on a sparse file; then it works as before."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 1 << 40)
    disk = BlkDevice(DiskImage.open(path), io=kind)
    async with Harness(disk) as h:
        h.memory.write(0x200000, header(Request.IN))
        for _ in range(3):
            q = h.queues[0]
            for i in range(8):
                first = 4 + 8 * i
                q.put(first, Descriptor(0x200000, 16, NEXT, first + 1))
                q.put(first + 1, Descriptor(0x400000, 32 << 20, NEXT | WRITE, first + 2))
                q.put(first + 2, Descriptor(0x200100, 1, WRITE))
                q.offer(first)
            q.kick()
            while not disk._disk.in_flight:  # noqa: ASYNC110 - native code has no event for it
                await asyncio.sleep(0)
            async with asyncio.timeout(HANGS):
                await h.reset()
            await h.start()
        assert await read(h, 1 << 20, 512) == bytes(512)


def threads_of(disk: BlkDevice) -> list[set[int]]:
    """Where each thread of the disk's may run."""
    names = {thread.native_id or 0 for thread in threading.enumerate() if disk.label in thread.name}
    return [os.sched_getaffinity(id_) for id_ in names]


async def test_transfers_of_a_queue_are_made_on_the_processors_that_were_given(path: Path) -> None:
    here = os.sched_getaffinity(0)
    chosen = max(here)
    config = DiskConfig(path=path, num_queues=2, queue_affinity=((0, (chosen,)),), id="bound")
    disk = BlkDevice.from_config(config, "bound")
    async with Harness(disk) as h:
        assert disk.io is IoKind.THREADS
        assert await read(h, 0, 4096) == contents(path)[:4096]
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
        bound = threads_of(disk)
        assert bound
        assert all(processors == {chosen} for processors in bound)
        await disk.sync()  # is of no queue
        assert here in threads_of(disk)


async def test_a_processor_that_the_host_has_not_is_said_before_the_guest_runs(path: Path) -> None:
    disk = BlkDevice.from_config(DiskConfig(path=path, queue_affinity=((0, (1 << 12,)),)))
    with pytest.raises(HostError, match=r"disk\.queue_affinity= has processors of the host"):
        await disk.open()
    await disk.close()
