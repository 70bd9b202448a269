"""Disk images on the host: opening, locking, geometry, O_DIRECT."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiovmm.config import DiskConfig, LockGranularity
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, Geometry, Status
from aiovmm.devices.virtio.blk.engine import IoKind
from aiovmm.devices.virtio.blk.extents import Extent
from aiovmm.devices.virtio.blk.protocol import BlkConfigSpace, Request
from aiovmm.errors import HostError, ImageError
from aiovmm.memory import PAGE_SIZE, GuestMemory
from aiovmm.native import ffi
from aiovmm.testing import Harness
from aiovmm.virtqueue.driver import NEXT, WRITE, Descriptor
from tests.devices.virtio.blk_driver import allocated, contents, header, submit, write
from tests.limits import HANGS
from tests.open_files import descriptors

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


# -- opening -------------------------------------------------------------------------------------------------------------


def test_what_is_no_image(tmp_path: Path) -> None:
    fds = descriptors()
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(ImageError, match="neither a file nor a block device"):
            DiskImage.open(path)
    with pytest.raises(HostError, match="truncate -s") as caught:
        DiskImage.open(tmp_path / "absent")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(tmp_path / "absent")
    assert descriptors() <= fds


def swapped(monkeypatch: pytest.MonkeyPatch, at: str, path: Path, other: Path) -> None:
    """Another file takes its place once `at` of module os has looked at it."""
    look = getattr(os, at)

    def then_swap(*args: Any, **named: Any) -> Any:
        found = look(*args, **named)
        if args[0] == path and other.exists():
            os.replace(other, path)
        return found

    monkeypatch.setattr(os, at, then_swap)


def test_what_takes_its_place_meanwhile_is_waited_for_by_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fds = descriptors()
    os.mkfifo(path.with_name("fifo"))
    swapped(monkeypatch, "stat", path, path.with_name("fifo"))
    with pytest.raises(ImageError, match="neither a file nor a block device"):
        DiskImage.open(path, readonly=True)
    assert descriptors() <= fds


def test_it_is_what_was_looked_at(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a file that looks raw could stand in for one that does not, and the guest have that one's tables."""
    fds = descriptors()
    harmless = path.with_name("harmless")
    harmless.write_bytes(path.read_bytes())
    swapped(monkeypatch, "open", path, harmless)
    with pytest.raises(ImageError, match="was replaced by another file"):
        DiskImage.open(path)
    assert descriptors() <= fds


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to everything")
def test_a_file_that_may_not_be_written(path: Path) -> None:
    path.chmod(0o444)
    with pytest.raises(HostError, match="readonly=on"):
        DiskImage.open(path)
    DiskImage.open(path, readonly=True).close()


def test_closing_twice(path: Path) -> None:
    fds = descriptors()
    image = DiskImage.open(path, direct=True)
    image.close()
    image.close()
    assert descriptors() <= fds


# -- locks ---------------------------------------------------------------------------------------------------------------


def test_a_writer_is_alone_and_readers_share(path: Path) -> None:
    writer = DiskImage.open(path)
    for readonly in (False, True):
        with pytest.raises(HostError, match="locking the image") as caught:
            DiskImage.open(path, readonly=readonly)
        assert caught.value.errno == errno.EAGAIN
        assert caught.value.hint
    writer.close()
    readers = [DiskImage.open(path, readonly=True) for _ in range(3)]
    with pytest.raises(HostError, match="readonly=on"):
        DiskImage.open(path)
    for reader in readers:
        reader.close()
    DiskImage.open(path).close()


def test_the_lock_holds_against_other_processes(path: Path) -> None:
    image = DiskImage.open(path, direct=True)
    code = "import sys; from aiovmm.devices.virtio.blk import DiskImage; DiskImage.open(sys.argv[1])"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "another VM or program uses this image" in done.stderr
    image.close()
    subprocess.run(command, check=True, timeout=HANGS)


# -- what it is ------------------------------------------------------------------------------------------------------------


def test_sizes(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    for size, sectors in ((0, 0), (1, 1), (512, 1), (513, 2), (1 << 40, 1 << 31)):
        path.touch()
        os.truncate(path, size)
        image = DiskImage.open(path)
        assert image.sectors == sectors
        image.close()


def test_probing_changes_nothing(path: Path) -> None:
    before, blocks = contents(path), allocated(path)
    image = DiskImage.open(path)
    assert image.can_discard
    image.close()
    assert contents(path) == before
    assert allocated(path) == blocks


def test_zeroes_where_the_file_system_cannot_zero_ranges(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tmpfs has no FALLOC_FL_ZERO_RANGE: zeros are written."""
    image = DiskImage.open(path)
    monkeypatch.setattr("aiovmm.devices.virtio.blk.image._ZERO_RANGE", 0x4000)  # no such mode
    before = contents(path)
    assert image.write_zeroes(Extent(512, 1 << 19, unmap=False)) == 0
    image.close()
    assert contents(path) == before[:512] + bytes(1 << 19) + before[512 + (1 << 19) :]
    assert allocated(path) * 512 >= SIZE


def test_errors_of_rare_operations_are_errnos(path: Path) -> None:
    image = DiskImage.open(path)
    beyond = Extent((1 << 63) - 512, 512, unmap=False)
    assert image.discard(beyond) == errno.EFBIG
    assert image.write_zeroes(beyond) == errno.EFBIG
    own, image.fd = image.fd, os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(image.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert image.discard(Extent(0, 512, unmap=False)) == errno.EPERM
    os.close(image.fd)
    reading, writing = os.pipe()
    image.fd = reading
    assert image.flush() == errno.EINVAL
    os.close(reading)
    os.close(writing)
    image.fd = own
    image.close()


@pytest.mark.parametrize(
    ("geometry", "exponent", "least", "optimal", "alignment"),
    [
        (Geometry(), 3, 8, 0, 8),
        (Geometry(512, 512, 0, 512), 0, 1, 0, 1),
        (Geometry(4096, 4096, 1 << 20, 1 << 16), 0, 1, 256, 128),
        (Geometry(4096, 512, 0, 512), 0, 1, 0, 1),
        (Geometry(512, 1 << 26, 0, 0), 17, 0xFFFF, 0, 1),
    ],
)
def test_geometries(geometry: Geometry, exponent: int, least: int, optimal: int, alignment: int) -> None:
    config = BlkConfigSpace(
        geometry, capacity=5, seg_max=1, num_queues=1, max_segment_sectors=1, max_segments=1, may_unmap=False
    )
    assert struct.unpack("<IBBHI", config.read(20, 12)) == (geometry.logical, exponent, 0, least, optimal)
    assert struct.unpack("<I", config.read(44, 4)) == (alignment,)
    config.capacity = 1 << 40
    assert config.read(0, 8) == struct.pack("<Q", 1 << 40)


# -- O_DIRECT --------------------------------------------------------------------------------------------------------------


def offer(h: Harness, kind: Request, sector: int, address: int, size: int) -> None:
    """A request whose data lies at `address` exactly."""
    h.memory.write(0x200000, header(kind, sector))
    q = h.queues[0]
    flags = NEXT | (WRITE if kind is Request.IN else 0)
    chain = [Descriptor(0x200000, 16, NEXT, 1), Descriptor(address, size, flags, 2), Descriptor(0x200100, 1, WRITE)]
    q.add_raw(chain)
    q.kick()


@pytest.mark.parametrize("io", [IoKind.AUTO, IoKind.THREADS], ids=["auto", "threads"])
@pytest.mark.parametrize(
    ("address", "sector", "size"),
    [
        (0x300000, 8, 8192),  # aligned to everything
        (0x300200, 8, 4096),  # memory to 512
        (0x300000, 3, 512),  # one sector, wherever it is
        (0x300010, 8, 4096),  # memory that O_DIRECT refuses
        (0x3000FF, 0, SIZE),
        (0x300001, 2047, 512),
    ],
)
async def test_direct_io_whatever_the_alignment(path: Path, io: IoKind, address: int, sector: int, size: int) -> None:
    disk = BlkDevice(DiskImage.open(path, direct=True), io=io)
    expected = bytearray(contents(path))
    data = os.urandom(size)
    async with Harness(disk) as h:
        offer(h, Request.IN, sector, address, size)
        (used,) = await h.queues[0].used()
        assert used.length == size + 1
        assert h.memory.read(0x200100, 1) == b"\0"
        assert h.memory.read(address, size) == expected[sector * 512 : sector * 512 + size]
        h.memory.write(address, data)
        offer(h, Request.OUT, sector, address, size)
        (used,) = await h.queues[0].used()
        assert h.memory.read(0x200100, 1) == bytes([Status.OK])
    expected[sector * 512 : sector * 512 + size] = data
    assert contents(path) == expected


async def test_of_an_odd_file_that_is_direct_whole_blocks_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 8200)
    image = DiskImage.open(path, direct=True)
    assert image.sectors == 16
    assert "the guest has 8192 of the bytes (`truncate -s %512 FILE` rounds it up" in caplog.text
    async with Harness(BlkDevice(image)) as h:
        for sector, size, status in ((15, 512, Status.OK), (15, 1024, Status.IOERR), (16, 512, Status.IOERR)):
            h.memory.write(0x201000, b"y" * size)
            offer(h, Request.OUT, sector, 0x201000, size)
            await h.queues[0].used()
            assert h.memory.read(0x200100, 1) == bytes([status])
    assert path.read_bytes() == b"x" * 7680 + b"y" * 512 + b"x" * 8


async def test_nothing_of_the_guests_data_is_left_in_the_page_cache(path: Path) -> None:
    """Pages of the cache beside sectors that O_DIRECT writes: the kernel reports such a collision by EIO at the next flush."""
    disk = BlkDevice(DiskImage.open(path, direct=True))
    async with Harness(disk) as h:
        q = h.queues[0]
        for turn in range(50):
            for i in range(16):  # sectors of two pages, every other one at an address that O_DIRECT refuses
                address = 0x300000 + 4096 * i + (i % 2) * 16
                h.memory.write(address, bytes([turn + i]) * 512)
                h.memory.write(0x200000 + 32 * i, header(Request.OUT, i))
                first = 4 + 3 * i
                q.put(first, Descriptor(0x200000 + 32 * i, 16, NEXT, first + 1))
                q.put(first + 1, Descriptor(address, 512, NEXT, first + 2))
                q.put(first + 2, Descriptor(0x210000 + i, 1, WRITE))
                q.offer(first)
            q.kick()
            await q.used(16)
            assert h.memory.read(0x210000, 16) == bytes(16)
            assert (await submit(h, Request.FLUSH))[0] is Status.OK
        expected = b"".join(bytes([49 + i]) * 512 for i in range(16))
        assert contents(path)[:8192] == expected


@pytest.mark.parametrize("io", [IoKind.AUTO, IoKind.THREADS], ids=["auto", "threads"])
async def test_sectors_of_one_block_written_at_once_all_arrive(path: Path, io: IoKind) -> None:
    """A medium with blocks of 4096 bytes: each write of a sector reads the block, changes it and writes it."""
    image = DiskImage.open(path, direct=True)
    image.align = (4096, 512)
    disk = BlkDevice(image, io=io)
    async with Harness(disk) as h:
        q = h.queues[0]
        expected = bytearray(contents(path))
        for turn in range(20):
            heads = []
            for sector, count in ((0, 1), (1, 1), (8, 16), (2, 3), (5, 2), (24, 8), (7, 1), (33, 600)):
                data = bytes([turn + sector]) * (512 * count)
                expected[sector * 512 : (sector + count) * 512] = data
                heads.append(q.add([header(Request.OUT, sector), data], [1]))
            q.kick()
            assert all(used.data == b"\0" for used in await q.used(len(heads)))
            assert contents(path) == expected
        assert disk._disk.lent == 0


# -- buffers in many pieces ------------------------------------------------------------------------------------------------


class Paged:
    """Guest memory as a translation shows it that maps every page by itself: a buffer is a segment a page."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        count = memory.size // PAGE_SIZE
        self.regions = ffi.new("struct avmm_region[]", count)
        self.table: Any = ffi.new("struct avmm_mem *", {"count": count, "regions": self.regions})
        host = memory.host_address(0, memory.size)
        for i in range(count):
            r = self.regions[i]
            r.base, r.size, r.perm, r.host = i * PAGE_SIZE, PAGE_SIZE, 3, host + i * PAGE_SIZE

    def slice(self, address: int, size: int) -> memoryview:
        return self.memory.slice(address, size)

    def read(self, address: int, size: int) -> bytes:
        return self.memory.read(address, size)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.memory.write(address, data)


@pytest.mark.parametrize("io", [IoKind.AUTO, IoKind.THREADS], ids=["auto", "threads"])
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
async def test_more_segments_than_one_system_call_takes(tmp_path: Path, io: IoKind, direct: bool) -> None:
    size = 10 << 20  # 2560 pages; UIO_MAXIOV is 1024
    path = tmp_path / "big"
    path.write_bytes(os.urandom(size))
    disk = BlkDevice(DiskImage.open(path, direct=direct), queue_size=16, io=io)
    harness = Harness(disk)
    harness.device_memory = Paged(harness.memory)
    async with harness as h:
        for address in (0x1000000, 0x1000200):
            offer(h, Request.IN, 0, address, size)
            (used,) = await h.queues[0].used()
            assert used.length == size + 1
            assert h.memory.read(address, size) == contents(path)
        data = os.urandom(size)
        h.memory.write(0x1000000, data)
        offer(h, Request.OUT, 0, 0x1000000, size)
        await h.queues[0].used()
        assert h.memory.read(0x200100, 1) == b"\0"
    assert contents(path) == data


# -- options -------------------------------------------------------------------------------------------------------------


def test_a_serial_number_of_the_files_own(path: Path) -> None:
    """As the reference monitor makes it, so that /dev/disk/by-id names stay."""
    file = path.stat()
    image = DiskImage.open(path)
    assert image.serial == f"{file.st_dev}{file.st_rdev}{file.st_ino}"[:20]
    assert bytes(BlkDevice(image)._disk.id).rstrip(b"\0") == image.serial.encode()
    assert bytes(BlkDevice(image, serial="of-its-own")._disk.id).rstrip(b"\0") == b"of-its-own"
    image.close()


async def test_what_is_not_sparse_keeps_its_space(path: Path) -> None:
    for sparse in (True, False):
        disk = BlkDevice(DiskImage.open(path, sparse=sparse))
        assert bool(disk.features & (1 << 13)) is sparse  # DISCARD
        async with Harness(disk) as h:
            await write(h, 0, os.urandom(SIZE))
            status, _ = await submit(h, Request.WRITE_ZEROES, 0, struct.pack("<QII", 0, SIZE // 512, 1))
            assert status is Status.OK
        assert contents(path) == bytes(SIZE)
        assert (allocated(path) == 0) is sparse


def test_a_lock_on_the_bytes_that_are_there(path: Path) -> None:
    """Another program may lock what lies behind them."""
    for lock, free in ((LockGranularity.BYTE_RANGE, True), (LockGranularity.FULL, False)):
        image = DiskImage.open(path, lock=lock)
        with path.open("r+b") as other:
            behind = struct.pack("@hhqqi4x", fcntl.F_WRLCK, 0, SIZE, 1, 0)
            inside = struct.pack("@hhqqi4x", fcntl.F_WRLCK, 0, SIZE - 1, 1, 0)
            try:
                fcntl.fcntl(other, fcntl.F_OFD_SETLK, behind)
            except OSError:
                assert not free
            else:
                assert free
            with pytest.raises(OSError, match=r"Resource temporarily unavailable|Permission denied"):
                fcntl.fcntl(other, fcntl.F_OFD_SETLK, inside)
        image.close()


def test_threads_where_io_uring_is_not_wanted(path: Path) -> None:
    config = DiskConfig(path=path, io_uring=False)
    assert BlkDevice.from_config(config)._io is IoKind.THREADS
    assert BlkDevice.from_config(DiskConfig(path=path))._io is IoKind.AUTO
