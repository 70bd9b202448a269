"""Forked workers, as multiprocessing makes them before Python 3.14: nothing of a guest stays with them."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from aiovmm import VM, ConsoleConfig, ConsoleMode, DiskConfig, MemoryConfig, NetConfig, PmemConfig, VMConfig
from aiovmm.runtime.forks import keep_private, let_go
from tests.limits import HANGS
from tests.vm.guest import config, counts_on

TAP = "aiovmmfork"
HAS_TUN = os.path.exists("/dev/net/tun") and os.geteuid() == 0


@pytest.fixture
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        yield pool


def everything(directory: Path) -> VMConfig:
    """A guest with one of everything that a worker could keep."""
    (directory / "disk").write_bytes(bytes(1 << 20))
    with (directory / "pmem").open("wb") as pmem:
        pmem.truncate(2 << 20)
    return config(
        "x",
        memory=MemoryConfig(4 << 20, shared=True),
        disks=(DiskConfig(path=directory / "disk"),),
        pmems=(PmemConfig(file=directory / "pmem"),),
        nets=(NetConfig(tap=TAP),) if HAS_TUN else (),
        serial=ConsoleConfig(ConsoleMode.SOCKET, directory / "console"),
    )


def in_worker() -> tuple[list[str], list[str]]:
    """What the worker has: where its descriptors lead, and what it has mapped."""
    targets = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(f"/proc/self/fd/{fd}"))
    maps = [line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()]
    return targets, maps


GUESTS = ("anon_inode:kvm", "/dev/kvm", "memfd", "/dev/net/tun")
"""With the guest's own files: a checkout, and with it what the interpreter has mapped, may lie at any path."""


async def test_a_worker_keeps_nothing_of_a_guest(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("fork")
    ) as earlier:  # what other tests have left
        already = Counter(name for names in await loop.run_in_executor(earlier, in_worker) for name in names)
    async with VM(everything(tmp_path)) as vm:
        await vm.start()
        await counts_on(vm)
        targets, maps = await loop.run_in_executor(pool, in_worker)
        kept = [*GUESTS, str(tmp_path)]
        if isinstance(loop, asyncio.BaseEventLoop):  # uvloop makes one of its own
            kept.append("io_uring")
        new = Counter((*targets, *maps)) - already
        assert not [name for name in new if any(word in name for word in kept)]
        await counts_on(vm)  # and the guest has not noticed


async def test_the_next_vm_gets_all_while_the_worker_lives(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(3):
        async with VM(everything(tmp_path)) as vm:
            await vm.start()
            reader, writer = await asyncio.open_unix_connection(tmp_path / "console")
            await loop.run_in_executor(pool, os.getpid)  # the first time: forked now
        assert await asyncio.wait_for(reader.read(), HANGS) == b""
        writer.close()


async def test_a_child_that_ends_as_programs_do_leaves_the_guest_alone(tmp_path: Path) -> None:
    """With finalizers and exit handlers, which must not reach for the parent's threads and memory."""
    async with VM(everything(tmp_path)) as vm:
        await vm.start()
        await counts_on(vm)
        pid = os.fork()
        if pid == 0:
            try:
                sys.exit(7)
            except SystemExit:
                import atexit
                import gc

                atexit._run_exitfuncs()
                del vm
                gc.collect()
                os._exit(7)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        await counts_on(vm, 100)


def test_what_is_not_ours_stays() -> None:
    """Descriptors of the program's own, files among them, are the child's as ever."""
    reading, writing = os.pipe()
    ours = keep_private(os.memfd_create("ours"))
    also_ours = os.dup(ours)  # as mmap makes one
    theirs = os.memfd_create("theirs")
    pid = os.fork()
    if pid == 0:
        names = [os.readlink(f"/proc/self/fd/{fd}") for fd in (ours, also_ours, theirs)]
        os.write(writing, "\n".join(names).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 1000).decode().split("\n") == ["/dev/null", "/dev/null", "/memfd:theirs (deleted)"]
    for fd in (reading, writing, let_go(ours), also_ours, theirs):
        os.close(fd)


AT_THE_LIMIT = """
import os, resource, sys
from aiovmm.runtime.forks import keep_private

own = [keep_private(os.open(path, os.O_RDWR)) for path in sys.argv[1:]]
copies = [os.dup(fd) for fd in own]
other = os.open(sys.argv[1] + "-other", os.O_RDWR | os.O_CREAT)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
last = other
try:
    while True:
        last = os.dup(other)
except OSError:
    pass
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
nothing = os.stat(os.devnull).st_rdev
kept = [fd for fd in [*own, *copies] if os.fstat(fd).st_rdev != nothing]
lost = [fd for fd in range(other, last + 1) if not os.path.samestat(os.fstat(fd), os.fstat(other))]
print(kept, lost)
"""


def test_a_child_that_is_forked_at_the_limit_of_descriptors_keeps_none_of_them(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).touch()
    command = [sys.executable, "-c", AT_THE_LIMIT, str(tmp_path / "a"), str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, timeout=HANGS, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] []\n", "")
