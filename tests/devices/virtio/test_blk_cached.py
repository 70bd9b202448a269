"""Large cached requests: who copies them. A write that the kernel leaves to its threads by itself is not left to them by us, for
then each would wake one more thread to wait for the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.devices.virtio.blk.engine import IoKind
from aiovmm.native import ffi, lib
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import contents, read, write

LARGE, SMALL = 512 << 10, 4096
UNKNOWN, NO, YES = lib.AVMM_BLK_UNKNOWN, lib.AVMM_BLK_NO, lib.AVMM_BLK_YES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    return path


@pytest.fixture
def disk(path: Path) -> BlkDevice:
    ring = ffi.new("struct avmm_uring *")
    if error := -lib.avmm_uring_open(ring, 1, 1):
        pytest.skip(f"io_uring: {os.strerror(error)}")
    lib.avmm_uring_close(ring)
    return BlkDevice(DiskImage.open(path, raw=True), io=IoKind.URING)  # whose first sector is as any other


def takes_writes_at_once(path: Path) -> bool:
    """Whether the file system writes into the page cache without waiting."""
    with path.open("r+b") as file:
        block = os.pread(file.fileno(), SMALL, 0)
        try:
            os.pwritev(file.fileno(), [block], 0, os.RWF_NOWAIT)
        except OSError:
            return False
    return True


def gives_at_once(path: Path) -> bool:
    """Whether the file system reads from the page cache without waiting: some tmpfs does not."""
    with path.open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(SMALL)], 0, os.RWF_NOWAIT)
        except OSError:
            return False
    return True


def left_to_threads(disk: BlkDevice) -> bool:
    """Whether the last request was, by us: all use the same slot, one after the other."""
    assert disk._service is not None
    return bool(disk._service._queues[0]._native.slots[0].punt)


async def test_the_first_large_write_asks_the_file(disk: BlkDevice, path: Path) -> None:
    data = os.urandom(LARGE)
    async with Harness(disk) as h:
        await write(h, 0, data[:SMALL])
        assert disk._disk.writes_wait == UNKNOWN
        await write(h, 0, data)
        assert disk._disk.writes_wait == (NO if takes_writes_at_once(path) else YES)
    assert contents(path)[:LARGE] == data


@pytest.mark.parametrize("wait", [NO, YES])
async def test_a_large_write_is_left_to_threads_where_the_kernel_would_copy_it(
    disk: BlkDevice, path: Path, wait: int
) -> None:
    data = os.urandom(LARGE)
    disk._disk.writes_wait = wait
    async with Harness(disk) as h:
        await write(h, 8, data)
        assert left_to_threads(disk) is (wait == NO)
        await write(h, 0, data[:SMALL])
        assert not left_to_threads(disk)
        assert await read(h, 8, LARGE) == data
        assert left_to_threads(disk)
        assert await read(h, 0, SMALL) == data[:SMALL]
        assert left_to_threads(disk) is not gives_at_once(path)
    assert contents(path)[:SMALL] + contents(path)[8 * 512 :][:LARGE] == data[:SMALL] + data


async def test_write_through_is_not_asked_with_a_write_that_is_not_stable(disk: BlkDevice, path: Path) -> None:
    data = os.urandom(LARGE)
    async with Harness(disk) as h:
        disk._disk.write_through = True
        await write(h, 0, data)
        assert disk._disk.writes_wait == UNKNOWN
    assert contents(path)[:LARGE] == data


async def test_threads_of_ours_need_not_know(path: Path) -> None:
    disk = BlkDevice(DiskImage.open(path), io=IoKind.THREADS)
    data = os.urandom(LARGE)
    async with Harness(disk) as h:
        await write(h, 0, data)
        assert disk._disk.writes_wait == UNKNOWN
    assert contents(path)[:LARGE] == data
