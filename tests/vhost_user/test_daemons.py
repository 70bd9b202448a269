"""Back ends that nobody here wrote, under the driver simulator: QEMU's storage daemon and Debian's virtiofsd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from aiovmm.devices.virtio.vhost_user import VhostUserBlk, VhostUserDevice, VhostUserFs, VhostUserGeneric
from aiovmm.errors import PeerError
from aiovmm.vhost_user import Timing
from tests.pci.echo import until
from tests.vhost_user.bench import Guest
from tests.vhost_user.disks import read_header, write_header

STORAGE_DAEMON = shutil.which("qemu-storage-daemon")
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
needs_storage_daemon = pytest.mark.skipif(STORAGE_DAEMON is None, reason="qemu-storage-daemon is not installed")
needs_virtiofsd = pytest.mark.skipif(
    not VIRTIOFSD.exists() or os.geteuid() != 0, reason="Debian's virtiofsd is not installed, or we are not root"
)


@contextlib.asynccontextmanager
async def running(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def storage_daemon(image: Path, path: Path) -> tuple[str, ...]:
    assert STORAGE_DAEMON is not None
    export = f"type=vhost-user-blk,id=e,node-name=disk,writable=on,num-queues=2,addr.type=unix,addr.path={path}"
    return STORAGE_DAEMON, "--blockdev", f"driver=file,filename={image},node-name=disk", "--export", export


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 << 20))
    return path


@needs_storage_daemon
async def test_the_storage_daemon_reads_and_writes_over_resets(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "vu.sock"
    disk = VhostUserBlk(path, num_queues=2, timing=Timing(connect=10))
    async with running(*storage_daemon(image, path)), Guest(disk) as guest:
        assert int.from_bytes(disk.read_config(0, 8), "little") == (8 << 20) // 512
        for round_ in range(5):
            await guest.driver.start()
            content = os.urandom(8192)
            assert await guest.driver.request(round_ % 2, [write_header(64), content], [1]) == b"\0"
            assert await guest.driver.request(1 - round_ % 2, [read_header(64)], [8192, 1]) == content + b"\0"
            assert await asyncio.to_thread(image.read_bytes) == bytes(64 * 512) + content + bytes(
                (8 << 20) - 64 * 512 - 8192
            )
            await guest.driver.reset()


@needs_storage_daemon
async def test_the_storage_daemon_killed_with_nothing_in_flight(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "vu.sock"
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(running(*storage_daemon(image, path)))
        guest = await stack.enter_async_context(Guest(VhostUserBlk(path, timing=Timing(connect=10))))
        await guest.driver.start()
        assert await guest.driver.request(0, [write_header(0), b"x" * 512], [1]) == b"\0"
        first.kill()
        await until(lambda: not guest.backend.reachable)
        path.unlink()
        async with running(*storage_daemon(image, path)):
            await until(lambda: guest.backend.connected)
            assert await guest.driver.request(0, [read_header(0)], [512, 1]) == b"x" * 512 + b"\0"


def of_its_kind(path: Path) -> VhostUserDevice:
    return VhostUserFs(path, "tag", queue_size=128, timing=Timing(connect=10))


def of_any_kind(path: Path) -> VhostUserDevice:
    """`--generic-vhost-user device_type=fs,queue_sizes=[128,128]`: nothing is known of it but that."""
    return VhostUserGeneric(path, VhostUserFs.device_id, (128, 128), timing=Timing(connect=10))


@needs_virtiofsd
@pytest.mark.parametrize("made", [of_its_kind, of_any_kind])
async def test_virtiofsd_opens_a_session(made: Callable[[Path], VhostUserDevice], tmp_path: Path) -> None:
    path, share = tmp_path / "fs.sock", tmp_path / "share"
    share.mkdir()
    options = ("-o", f"source={share}", "-o", "sandbox=chroot", "--rlimit-nofile=1024")
    async with running(str(VIRTIOFSD), f"--socket-path={path}", *options) as daemon, Guest(made(path)) as guest:
        await guest.driver.start()
        init = struct.pack("<IIQQIIII", 56, 26, 7, 0, 0, 0, 0, 0) + struct.pack("<IIII", 7, 31, 0x20000, 0)
        answer = await guest.driver.request(1, [init], [80])  # FUSE_INIT, <linux/fuse.h>
        size, error, unique = struct.unpack_from("<IiQ", answer)
        assert (size, error, unique) == (80, 0, 7)
        assert struct.unpack_from("<I", answer, 16) == (7,)
        daemon.kill()
        error_ = await guest.broken()
        assert isinstance(error_, PeerError)
        await guest.driver.reset()
