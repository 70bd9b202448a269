"""A disk whose monitor is killed at any moment has all that was flushed, or written in write-through mode; nothing that was not.

The page cache outlives a process: what a computer that loses its power keeps is the host's file systems' promise to fdatasync(2).
"""

from __future__ import annotations

import asyncio
import errno
import random
import sys
from pathlib import Path

import pytest

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.devices.virtio.blk.protocol import SECTOR
from aiovmm.errors import HostError
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import read
from tests.devices.virtio.overlay.test_crash import SECTORS, opened, run_and_kill, versions
from tests.limits import HANGS

WRITER = """
import asyncio, random, sys
from pathlib import Path
from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.devices.virtio.blk.overlay.chain import open_base
from aiovmm.devices.virtio.blk.overlay.image import OverlayImage
from aiovmm.devices.virtio.blk.protocol import Request
from aiovmm.errors import HostError
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import submit, write

WRITE_BACK = 32  # in struct virtio_blk_config

async def opened(base, top):
    while True:  # the kernel may have requests of the one before under way
        try:
            return DiskImage.open(top) if base is None else OverlayImage.open_over(open_base(base), top)
        except HostError:
            await asyncio.sleep(0.01)

async def main(base, top, first, seed):
    rand = random.Random(seed)
    disk = BlkDevice(await opened(base, top))
    async with Harness(disk) as h:
        print("ready", flush=True)
        number = first
        while True:
            through = rand.random() < 0.5
            waits = disk.write_config(WRITE_BACK, bytes([not through]))
            if waits is not None:
                await waits
                print("f", number - 1, flush=True)
            for _ in range(rand.randint(1, 6)):
                sector = rand.randrange(512)
                count = rand.randint(1, min(12, 512 - sector))
                print("w", number, sector, count, flush=True)
                await write(h, sector, b"".join(number.to_bytes(8, "little").ljust(512, b"#") for _ in range(count)))
                if through:
                    print("f", number, flush=True)
                number += 1
            if not through and rand.random() < 0.5:
                await submit(h, Request.FLUSH)
                print("f", number - 1, flush=True)

base, top, first, seed = sys.argv[1:]
asyncio.run(main(Path(base) if base else None, Path(top), int(first), int(seed)))
"""


async def content(base: Path | None, top: Path) -> bytes:
    """Of the disk, after its monitor's death: once the kernel has ended what was under way, and the lock with it."""
    if base is not None:
        image: DiskImage = await opened(base, top)
    else:
        async with asyncio.timeout(HANGS):
            while True:
                try:
                    image = DiskImage.open(top)
                    break
                except HostError as exc:
                    if exc.errno != errno.EAGAIN:
                        raise
                await asyncio.sleep(0.01)
    async with Harness(BlkDevice(image)) as h:
        return await read(h, 0, SECTORS * SECTOR)


async def rounds(place: Path, overlay: bool, count: int) -> None:
    """Killed so many times."""
    empty = bytes(8).ljust(SECTOR, b"#") * SECTORS
    base, top = (place / "base", place / "top") if overlay else (None, place / "disk")
    (base or top).write_bytes(empty)
    sure, number, rand = [0] * SECTORS, 1, random.Random(count)
    for round_ in range(count):
        command = [sys.executable, "-c", WRITER, str(base or ""), str(top), str(number), str(round_)]
        writes, flushed = await asyncio.to_thread(run_and_kill, command, rand.randint(1, 80))
        may = [{version} for version in sure]
        for n, (sector, sectors) in sorted(writes.items()):
            for at in range(sector, sector + sectors):
                may[at] = {n} if n <= flushed else may[at] | {n}
        there = versions(await content(base, top))
        assert not [(at, there[at], may[at]) for at in range(SECTORS) if there[at] not in may[at]]
        sure, number = there, max([number, *writes]) + 1
    assert max(sure) > 0, "nothing was ever written"


@pytest.mark.parametrize("overlay", [False, True], ids=["raw", "overlay"])
def test_killed_ten_times(overlay: bool, tmp_path: Path) -> None:
    asyncio.run(rounds(tmp_path, overlay, 10))


@pytest.mark.thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize("overlay", [False, True], ids=["raw", "overlay"])
def test_killed_two_hundred_times(overlay: bool, tmp_path: Path) -> None:
    asyncio.run(rounds(tmp_path, overlay, 200))
