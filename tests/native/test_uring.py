"""io_uring by its system calls: set-up, refusal, tear-down."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.devices.virtio.blk.engine import Engine, IoKind
from aiovmm.errors import HostError
from aiovmm.native import ffi, lib
from aiovmm.testing import Harness
from tests.devices.virtio.blk_driver import header
from tests.limits import HANGS

REFUSE = Path(__file__).with_name("refuse_io_uring.py")
R_DISABLED = 1 << 6


@pytest.fixture
def ring() -> object:
    ring = ffi.new("struct avmm_uring *")
    error = -lib.avmm_uring_open(ring, 10, 0)
    if error:
        pytest.skip(f"io_uring: {os.strerror(error)}")
    return ring


def test_a_ring_has_the_entries_asked_for_and_leaves_nothing_behind(ring: object) -> None:
    assert (ring.sq_entries, ring.cq_entries) == (16, 16)  # type: ignore[attr-defined]
    lib.avmm_uring_close(ring)
    assert ring.fd == -1  # type: ignore[attr-defined]
    lib.avmm_uring_close(ring)
    maps = Path("/proc/self/maps").read_text().count("io_uring")
    for _ in range(50):
        assert lib.avmm_uring_open(ring, 64, 200) == 0
        lib.avmm_uring_close(ring)
    assert Path("/proc/self/maps").read_text().count("io_uring") == maps


def test_a_ring_is_readable_only_while_completions_wait(ring: object) -> None:
    fd = ring.fd  # type: ignore[attr-defined]
    assert select.select([fd], [], [], 0) == ([], [], [])
    lib.avmm_uring_close(ring)


def test_no_ring_of_that_size() -> None:
    ring = ffi.new("struct avmm_uring *")
    assert lib.avmm_uring_open(ring, 1 << 30, 0) == -errno.EINVAL
    assert ring.fd < 0
    lib.avmm_uring_close(ring)


@pytest.mark.parametrize(
    "operation", [45, 18, 28, 16, 46, 0], ids=["socket", "openat", "openat2", "connect", "command", "nothing"]
)
def test_a_ring_does_what_disks_need_and_nothing_else(ring: Any, operation: int) -> None:
    """Whoever takes over a process that has given up system calls has its rings. Of sockets the kernel would say EAFNOSUPPORT."""
    user_data, result = ffi.new("uint64_t *"), ffi.new("int32_t *")
    sqe = lib.avmm_uring_sqe(ring)
    sqe.opcode, sqe.fd = operation, -1
    assert lib.avmm_uring_submit(ring) == 0
    assert lib.avmm_uring_reap(ring, user_data, result) == 1
    restricted = ring.setup_flags & R_DISABLED  # since Linux 5.10; before that io_uring made no sockets
    assert not restricted or result[0] == -errno.EACCES
    lib.avmm_uring_close(ring)


def test_nobody_frees_a_ring_of_that(ring: Any) -> None:
    for operation in (11, 12):  # restrictions, and the beginning
        assert ctypes.CDLL(None).syscall(lib.SYS_io_uring_register, ring.fd, operation, None, 0) == -1
    lib.avmm_uring_close(ring)


async def test_engines() -> None:
    engine = Engine(IoKind.THREADS, 8, "test")
    assert engine.kind is IoKind.THREADS
    engine.close()
    engine.close()
    assert Engine(IoKind.AUTO, 1 << 30, "test").kind is IoKind.THREADS
    with pytest.raises(HostError, match="io_uring"):
        Engine(IoKind.URING, 1 << 30, "test")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_where_io_uring_is_refused_threads_serve_the_disk_and_nothing_else_is_said(
    tmp_path: Path, number: int, loop: str
) -> None:
    """As in a container whose seccomp filter does not know io_uring."""
    path = tmp_path / "disk"
    path.write_bytes(b"d" * 4096)
    command = [sys.executable, "-W", "error", str(REFUSE), str(number), loop, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "threads\n"
    (line,) = done.stderr.splitlines()
    assert "io_uring is refused" in line
    assert path.read_bytes() == b"d" * 512 + b"w" * 512 + b"d" * 3072


async def test_the_kernel_takes_no_submissions_for_a_while(tmp_path: Path) -> None:
    """What it did not take goes with a later call: here the ring's descriptor is another file's for some time."""
    path = tmp_path / "disk"
    path.write_bytes(b"d" * 4096)
    disk = BlkDevice(DiskImage.open(path))
    await disk.open()
    if disk.io is not IoKind.URING:
        await disk.close()
        pytest.skip("the host's kernel refuses io_uring")
    async with Harness(disk) as h:
        ring = disk._disk.ring.uring
        await asyncio.sleep(0)
        q = h.queues[0]
        fd, ring.fd = ring.fd, -1
        heads = {q.add([header(0, i)], [512, 1]) for i in range(4)}
        q.kick()
        async with asyncio.timeout(HANGS):
            while not ring.pending:  # noqa: ASYNC110 - native code has no event for it
                await asyncio.sleep(0)
        assert q.poll() == []
        ring.fd = fd
        answers = await q.used(4)
        assert {used.head for used in answers} == heads
        assert all(used.data == b"d" * 512 + b"\0" for used in answers)
