"""An overlay whose user is killed at any moment, or whose file system is full, is whole: nothing flushed is lost, nothing appears
that was never written, and what stands beside a write in its cluster stays."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovmm.devices.virtio.blk import BlkDevice, Status
from aiovmm.devices.virtio.blk.overlay.chain import open_base
from aiovmm.devices.virtio.blk.overlay.image import OverlayImage
from aiovmm.devices.virtio.blk.protocol import SECTOR, Request
from aiovmm.errors import HostError
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import read, submit, write
from tests.limits import HANGS
from tests.tmpfs import tmpfs

SECTORS = 512
WRITER = """
import asyncio, random, sys
from pathlib import Path
from aiovmm.devices.virtio.blk import BlkDevice
from aiovmm.devices.virtio.blk.overlay.chain import open_base
from aiovmm.devices.virtio.blk.overlay.image import OverlayImage
from aiovmm.devices.virtio.blk.protocol import Request
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import submit, write

async def main(base, top, first, seed):
    rand = random.Random(seed)
    async with Harness(BlkDevice(OverlayImage.open_over(open_base(base), top))) as h:
        print("ready", flush=True)
        number = first
        while True:
            for _ in range(rand.randint(1, 6)):
                sector = rand.randrange(512)
                count = rand.randint(1, min(12, 512 - sector))
                print("w", number, sector, count, flush=True)
                data = b"".join(number.to_bytes(8, "little").ljust(512, b"#") for _ in range(count))
                await write(h, sector, data)
                number += 1
            await submit(h, Request.FLUSH)
            print("f", number - 1, flush=True)

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
"""


def versions(content: bytes) -> list[int]:
    """Which write each sector comes from; 0: the base's."""
    found = []
    for at in range(0, len(content), SECTOR):
        sector = content[at : at + SECTOR]
        number = int.from_bytes(sector[:8], "little")
        assert sector[8:] == b"#" * (SECTOR - 8), "what nobody wrote"
        found.append(number)
    return found


def run_and_kill(command: list[str], lines: int) -> tuple[dict[int, tuple[int, int]], int]:
    """Let it write until it has said so much: the writes that it may have done, (sector, count), and the last one flushed."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.readlines()
    words = [line.split() for line in said if line.endswith("\n")]
    writes = {int(n[0]): (int(n[1]), int(n[2])) for word, *n in words if word == "w"}
    return writes, max((int(n[0]) for word, *n in words if word == "f"), default=0)


async def opened(base: Path, top: Path) -> OverlayImage:
    """When the kernel is done with what the ring of the one that was killed had under way: until then it has the lock."""
    async with asyncio.timeout(HANGS):
        while True:
            try:
                return OverlayImage.open_over(open_base(base), top)
            except HostError as exc:
                if exc.errno != errno.EAGAIN:
                    raise
            await asyncio.sleep(0.01)


async def test_killed_in_rounds(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(bytes(8).ljust(SECTOR, b"#") * SECTORS)
    sure = [0] * SECTORS  # at least that write is to be there
    number = 1
    rand = random.Random(0)
    for round_ in range(8):
        command = [sys.executable, "-c", WRITER, str(base), str(top), str(number), str(round_)]
        writes, flushed = run_and_kill(command, rand.randint(1, 60))
        may = [{version} for version in sure]
        for n, (sector, count) in sorted(writes.items()):
            for at in range(sector, sector + count):
                if n <= flushed:
                    may[at] = {n}
                else:
                    may[at].add(n)
        image = BlkDevice(await opened(base, top))
        async with Harness(image) as h:
            there = versions(await read(h, 0, SECTORS * SECTOR))
        wrong = [(at, there[at], may[at]) for at in range(SECTORS) if there[at] not in may[at]]
        assert not wrong
        sure = there
        number = max([number, *writes]) + 1
    assert max(sure) > 0, "nothing was ever flushed"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with tmpfs(tmp_path / "small", "1m") as place:
        yield place


@pytest.mark.parametrize("unaligned", [False, True], ids=["clusters", "parts"])
async def test_a_full_file_system_is_an_io_error_and_harms_nothing(
    small: Path, tmp_path: Path, unaligned: bool
) -> None:
    base, top = tmp_path / "base", small / "top"
    content = random.Random(1).randbytes(4 << 20)
    base.write_bytes(content)
    expected = bytearray(content)
    rand = random.Random(2)
    async with Harness(BlkDevice(OverlayImage.open_over(open_base(base), top))) as h:
        failed = 0
        for sector in range(0, 8192, 64):
            at = sector + (3 if unaligned else 0)
            data = rand.randbytes(8 * SECTOR if unaligned else 64 * SECTOR)
            status, _ = await submit(h, Request.OUT, at, data)
            if status is Status.OK:
                expected[at * SECTOR : at * SECTOR + len(data)] = data
            else:
                failed += 1
                got = await read(h, at, len(data))
                for i in range(0, len(data), SECTOR):
                    old = content[at * SECTOR + i : at * SECTOR + i + SECTOR]
                    assert got[i : i + SECTOR] in (old, data[i : i + SECTOR])
                expected[at * SECTOR : at * SECTOR + len(data)] = got
        assert failed, "it was not full"
        error = h.reported[0]
        assert isinstance(error, OSError)
        assert (error.errno, error.filename) == (errno.ENOSPC, str(top))
        for sector in range(0, 8192, 1024):
            assert await read(h, sector, 1024 * SECTOR) == expected[sector * SECTOR : (sector + 1024) * SECTOR]
        await write(h, 5, b"y" * SECTOR)  # what is there already can be written
        assert (await submit(h, Request.FLUSH))[0] is Status.OK, "there was no room for the map"
    async with Harness(BlkDevice(OverlayImage.open_over(open_base(base), top))) as h:
        for sector in range(1024, 8192, 1024):
            assert await read(h, sector, 1024 * SECTOR) == expected[sector * SECTOR : (sector + 1024) * SECTOR]


async def test_a_flush_that_fails_is_told_and_the_map_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync nobody knows what is on the medium: nothing may be said to be there from then on."""
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(b"o" * (1 << 20))
    sync = os.fdatasync
    async with Harness(BlkDevice(OverlayImage.open_over(open_base(base), top))) as h:
        await write(h, 0, b"a" * SECTOR)
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
        await write(h, 64, b"b" * SECTOR)

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, "")

        monkeypatch.setattr(os, "fdatasync", fail)
        assert (await submit(h, Request.FLUSH))[0] is Status.IOERR
        monkeypatch.setattr(os, "fdatasync", sync)
        assert (await submit(h, Request.FLUSH))[0] is Status.IOERR
        assert await read(h, 64, SECTOR) == b"b" * SECTOR
    async with Harness(BlkDevice(OverlayImage.open_over(open_base(base), top))) as h:
        assert await read(h, 0, SECTOR) == b"a" * SECTOR
        assert await read(h, 64, SECTOR) == b"o" * SECTOR


async def test_a_map_that_may_not_be_on_the_medium_is_not_said_to_be_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has its pages, and the kernel tells once only that it could not bring them to the medium."""
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(bytes(1 << 20))
    sync, syncs = os.fdatasync, 0

    def second_fails(fd: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == 2:
            raise OSError(errno.EIO, "")
        sync(fd)

    async with Harness(BlkDevice(OverlayImage.open_over(open_base(base), top))) as h:
        await write(h, 0, b"a" * SECTOR)
        monkeypatch.setattr(os, "fdatasync", second_fails)
        assert (await submit(h, Request.FLUSH))[0] is Status.IOERR
        assert syncs == 2
        assert (await submit(h, Request.FLUSH))[0] is Status.IOERR


@pytest.mark.parametrize("failure", [MemoryError("no more"), OSError(errno.ENOSPC, "")], ids=["memory", "space"])
async def test_a_map_that_could_not_be_written_is_written_with_the_next_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(bytes(1 << 20))

    def fail(fd: int, buffers: list[bytes], at: int) -> int:
        raise failure

    async with Harness(BlkDevice(OverlayImage.open_over(open_base(base), top))) as h:
        await write(h, 0, b"a" * SECTOR)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwritev", fail)
            assert (await submit(h, Request.FLUSH))[0] is Status.IOERR
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
    async with Harness(BlkDevice(OverlayImage.open_over(open_base(base), top))) as h:
        assert await read(h, 0, SECTOR) == b"a" * SECTOR


async def test_a_map_that_cannot_be_read_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing of it would show what is below."""
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(bytes(1 << 20))
    async with Harness(BlkDevice(OverlayImage.open_over(open_base(base), top))) as h:
        await write(h, 0, b"a" * SECTOR)
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
    get = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: get(fd, [buffers[0][:512]] if at else buffers, at))
    with pytest.raises(HostError, match="Input/output error"):
        OverlayImage.open_over(open_base(base), top)


async def test_the_order_is_data_map_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a flush does: the data to the medium, then the map, then that."""
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(bytes(1 << 20))
    done: list[str] = []
    sync, put = os.fdatasync, os.pwritev

    def synced(fd: int) -> None:
        done.append("sync")
        sync(fd)

    def written(fd: int, buffers: list[bytes], at: int) -> int:
        done.append("map")
        return put(fd, buffers, at)

    async with Harness(BlkDevice(OverlayImage.open_over(open_base(base), top))) as h:
        await write(h, 0, b"a" * 4096)
        monkeypatch.setattr(os, "fdatasync", synced)
        monkeypatch.setattr(os, "pwritev", written)
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
        assert done == ["sync", "map", "sync"]
        await write(h, 0, b"b" * 4096)
        assert (await submit(h, Request.FLUSH))[0] is Status.OK
        assert done == ["sync", "map", "sync"], "what was there already went another way than the ring"
