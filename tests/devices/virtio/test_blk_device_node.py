"""A block device of the host as the back end: a loop device, where this user may make one."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovmm.config import DiskConfig
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, Status
from aiovmm.devices.virtio.blk.opening import opener
from aiovmm.devices.virtio.blk.protocol import Feature, Request
from aiovmm.errors import HostError, ImageError, UsageError
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import allocated, contents, read, segments, submit, write

SIZE = 8 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "behind"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture(params=[512, 4096])
def loop(request: pytest.FixtureRequest, image: Path) -> Iterator[Path]:
    """A loop device with logical blocks of that size."""
    losetup = shutil.which("losetup")
    if losetup is None or os.geteuid() != 0:
        pytest.skip("a loop device needs root and losetup")
    command = [losetup, "-f", "--show", "-b", str(request.param), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    path = Path(done.stdout.strip())
    yield path
    subprocess.run([losetup, "-d", str(path)], timeout=20, check=True)


def grow(image: Path, loop: Path, size: int) -> None:
    os.truncate(image, size)
    subprocess.run(["losetup", "-c", str(loop)], timeout=20, check=True)


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
async def test_a_block_device_serves_as_a_disk(image: Path, loop: Path, direct: bool) -> None:
    before = contents(image)
    disk = BlkDevice(DiskImage.open(loop, direct=direct))
    async with Harness(disk) as h:
        assert disk.capacity == SIZE
        (logical,) = struct.unpack("<I", disk.read_config(20, 4))
        assert logical in (512, 4096)
        assert await read(h, 8, 8192) == before[4096:12288]
        assert await read(h, 3, 512) == before[1536:2048]  # of a block of 4096 it may be
        await write(h, 16, b"w" * 4096)
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
        assert contents(image)[8192:12288] == b"w" * 4096


async def test_discards_and_zeroes_reach_what_is_behind(image: Path, loop: Path) -> None:
    disk = BlkDevice(DiskImage.open(loop))
    assert disk.features & Feature.DISCARD
    async with Harness(disk) as h:
        before = allocated(image)
        assert (await submit(h, Request.DISCARD, 0, segments((2048, 4096, 0))))[0] is Status.OK
        assert allocated(image) <= before - 4096
        for unmap in (0, 1):
            sector = 8192 + 1024 * unmap
            assert (await submit(h, Request.WRITE_ZEROES, 0, segments((sector, 1024, unmap))))[0] is Status.OK
            assert await read(h, sector, 1024 * 512) == bytes(1024 * 512)


async def test_a_block_device_that_grows(image: Path, loop: Path) -> None:
    disk = BlkDevice(DiskImage.open(loop))
    async with Harness(disk) as h:
        with pytest.raises(UsageError, match="refresh"):
            await disk.resize(2 * SIZE)
        assert disk.capacity == SIZE
        grow(image, loop, 2 * SIZE)
        await disk.refresh()
        assert disk.capacity == 2 * SIZE
        assert h.config_irq.pulses == 1
        assert await read(h, 2 * SIZE // 512 - 8, 4096) == bytes(4096)


def test_a_block_device_is_locked_like_a_file(loop: Path) -> None:
    with_lock = DiskImage.open(loop)
    with pytest.raises(HostError, match="another VM or program"):
        DiskImage.open(loop)
    with_lock.close()


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
async def test_an_overlay_over_it(loop: Path, image: Path, tmp_path: Path, direct: bool) -> None:
    """Blocks of 4096 bytes stay, since with O_DIRECT nothing smaller can be read; and a device that was replaced is refused."""
    config = DiskConfig(path=loop, overlay=tmp_path / "top", direct=direct)
    before = contents(image)
    device = DiskImage.open(loop, readonly=True)
    logical = device.geometry.logical
    device.close()
    async with Harness(BlkDevice(opener(config)())) as h:
        assert int.from_bytes(h.device.read_config(20, 4), "little") == logical
        await write(h, 8, b"x" * 4096)
        assert await read(h, 0, 4096) == before[:4096]
        assert (await submit(h, Request.DISCARD, data=segments((64, 64, 0))))[0] is Status.OK
        assert (
            await read(h, 56, 128 * 512)
            == before[56 * 512 : 64 * 512] + bytes(64 * 512) + before[128 * 512 : 184 * 512]
        )
    assert contents(image) == before
    async with Harness(BlkDevice(opener(config)())) as h:
        assert await read(h, 8, 8192) == b"x" * 4096 + before[16 * 512 : 24 * 512]
    grow(image, loop, 2 * SIZE)
    with pytest.raises(ImageError, match="does not fit its base"):
        opener(config)()
