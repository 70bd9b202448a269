"""Storage that never answers: the guest whose it is waits, and nobody else does, not the loop, nor whoever ends that guest."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path

import pytest

from aiovmm import VM, DiskConfig, ExitReason, PmemConfig
from aiovmm.config.disk import ImageType
from aiovmm.devices.virtio.blk import BlkDevice
from aiovmm.devices.virtio.blk.engine import IoKind
from aiovmm.devices.virtio.blk.protocol import Request
from aiovmm.devices.virtio.pmem import PmemDevice
from aiovmm.errors import HostError
from aiovmm.machine import ending, release
from tests.devices.virtio.blk_driver import header
from tests.faults.stalling import Stalling, stalling
from tests.limits import HANGS
from tests.vm.drivers import start_drivers
from tests.vm.guest import config, counts_on

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"),
]
DOORBELL = 0x60018
"""Where the guest looks for an address to write to."""


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Stalling]:
    (tmp_path / "stalling").mkdir()
    with stalling(tmp_path / "stalling", 4 << 20) as mounted:
        yield mounted


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "PATIENCE", 0.3)
    monkeypatch.setattr(release, "PATIENCE", 0.3)


async def comes_to_rest(vm: VM, storage: Stalling, neighbour: VM) -> None:
    """Nobody who closes it waits; once storage answers, all of it goes."""
    with pytest.raises(HostError, match="storage") as failed:
        await vm.aclose()
    assert failed.value.errno == errno.ETIMEDOUT
    await counts_on(neighbour)
    await ended(vm, storage)


async def ended(vm: VM, storage: Stalling) -> None:
    """Storage answers, and it is closed."""
    await asyncio.to_thread(storage.go)
    async with asyncio.timeout(HANGS):
        while True:
            try:
                return await vm.aclose()
            except HostError:
                continue


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
@pytest.mark.parametrize("io", [True, False], ids=["auto", "threads"])
async def test_a_disk_that_never_answers(storage: Stalling, io: bool, direct: bool) -> None:
    async with VM(config("x", name="neighbour")) as neighbour:
        await neighbour.start()
        vm = VM(config("x", disks=(DiskConfig(path=storage.disk, io_uring=io, direct=direct),)))
        await vm.__aenter__()
        await vm.start()
        disk = (await start_drivers(vm))["disk0"]
        assert (await disk.request(0, [header(Request.IN)], [4096, 1]))[-1] == 0
        storage.stall()
        disk.queues[0].add([header(Request.IN, 4096)], [4096, 1])
        disk.queues[0].add([header(Request.OUT, 2048), bytes(4096)], [1])
        disk.queues[0].kick()
        await asyncio.to_thread(storage.await_victim)
        await counts_on(neighbour)
        await counts_on(vm)
        assert (await vm.stop(timeout=0.01)).reason is ExitReason.KILLED
        await comes_to_rest(vm, storage, neighbour)


async def test_a_pmem_that_never_answers(storage: Stalling) -> None:
    async with VM(config("x", name="neighbour")) as neighbour:
        await neighbour.start()
        vm = VM(config("d", pmems=(PmemConfig(file=storage.disk),)))
        await vm.__aenter__()
        await vm.start()
        (pmem,) = [plugged.device for plugged in vm._power.plugged if isinstance(plugged.device, PmemDevice)]
        storage.stall()
        vm.machine.memory.write(DOORBELL, (pmem._start + (1 << 20)).to_bytes(8, "little"))
        await asyncio.to_thread(storage.await_victim)
        await counts_on(neighbour)
        status = await asyncio.wait_for(vm.kill(), HANGS)
        assert status.reason is ExitReason.KILLED
        assert isinstance(status.error, HostError)
        assert "left in the host's kernel" in status.detail
        await comes_to_rest(vm, storage, neighbour)


async def test_a_guest_that_resets_itself_meanwhile_can_be_ended(storage: Stalling) -> None:
    """Its machine is not taken apart before storage answers."""
    async with VM(config("x", name="neighbour")) as neighbour:
        await neighbour.start()
        vm = VM(config("er", disks=(DiskConfig(path=storage.disk),)))
        await vm.__aenter__()
        await vm.start()
        disk = (await start_drivers(vm))["disk0"]
        storage.stall()
        disk.queues[0].add([header(Request.IN, 4096)], [4096, 1])
        disk.queues[0].kick()
        await asyncio.to_thread(storage.await_victim)
        vm.serial.write(b"q")
        await counts_on(neighbour)
        async with asyncio.timeout(HANGS):
            await vm.kill()
        await comes_to_rest(vm, storage, neighbour)


async def test_disks_on_such_file_systems_have_threads_of_their_own(storage: Stalling, tmp_path: Path) -> None:
    """The ring's own are few, and all disks' of a loop."""
    (tmp_path / "here").write_bytes(bytes(1 << 20))
    for path, kind in ((storage.disk, IoKind.THREADS), (tmp_path / "here", IoKind.URING)):
        disk = BlkDevice.from_config(DiskConfig(path=path))
        await disk.open()
        assert disk.io is kind
        await disk.close()


@contextmanager
def device_of(storage: Stalling) -> Iterator[Path]:
    """A block device of the host's own, which hangs when the storage does."""
    attach = ["losetup", "-f", "--show", str(storage.disk)]
    try:
        node = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no loop device can be made")
    try:
        yield Path(node)
    finally:
        subprocess.run(["losetup", "-d", node], check=True)


@contextmanager
def file_on(device: Path, folder: Path, size: int) -> Iterator[Path]:
    """A file system of the host's own on that, and a file there of which nothing is in memory, in more pieces than its inode
    has places for: where they lie has to be read, too."""
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-b", "1024", "-O", "^has_journal", str(device)], check=True)
    for attempt in ("fill", "leave"):
        subprocess.run(["mount", str(device), str(folder)], check=True)
        if attempt == "fill":
            with (folder / "disk").open("wb") as file:
                for at in range(0, size, 8192):
                    os.pwrite(file.fileno(), b"x" * 4096, at)
                    os.fsync(file.fileno())
                file.truncate(size)
            subprocess.run(["umount", str(folder)], check=True)
    try:
        yield folder / "disk"
    finally:
        subprocess.run(["umount", str(folder)], check=True)


KINDS = {
    "flushes": [([header(Request.FLUSH)], [1])],
    "writes and flushes": [([header(Request.OUT, 8), bytes(4096)], [1]), ([header(Request.FLUSH)], [1])],
    "reads": [([header(Request.IN, 16)], [4096, 1])],
}


PLACES = [
    pytest.param(where, kind, direct, id=f"{where}-{kind}-{'direct' if direct else 'cached'}", marks=marks)
    for where in ("device", "file")
    for kind in KINDS
    for direct in (False, True)
    for marks in [[] if (where, kind, direct) == ("device", "writes and flushes", False) else [pytest.mark.thorough]]
]


@pytest.mark.parametrize(("where", "kind", "direct"), PLACES)
async def test_a_disk_of_the_hosts_own_that_hangs_is_no_neighbours(
    storage: Stalling, tmp_path: Path, where: str, kind: str, direct: bool
) -> None:
    """As many requests as there are places for: what then waits in threads of the kernel's takes none of the others', and nothing
    waits in the loop's."""
    (tmp_path / "here").write_bytes(bytes(1 << 20))
    with ExitStack() as stack:
        path = stack.enter_context(device_of(storage))
        if where == "file":
            path = stack.enter_context(file_on(path, tmp_path / "mounted", 1 << 20))
        async with AsyncExitStack() as ends:
            here = DiskConfig(path=tmp_path / "here")
            neighbour = await ends.enter_async_context(VM(config("x", name="neighbour", disks=(here,))))
            await neighbour.start()
            works = (await start_drivers(neighbour))["disk0"]
            assert neighbour.disks[0].io is IoKind.URING
            vm = VM(config("x", disks=(DiskConfig(path=path, direct=direct, image_type=ImageType.RAW),)))
            ends.push_async_callback(ended, vm, storage)
            await vm.__aenter__()
            await vm.start()
            hangs = (await start_drivers(vm))["disk0"].queues[0]
            assert vm.disks[0].io is IoKind.URING
            storage.stall()
            while len(hangs.free) > 8:
                for readable, writable in KINDS[kind]:
                    hangs.add(readable, writable)
            hangs.kick()
            await counts_on(neighbour)
            await counts_on(vm)
            for readable, writable in (each for some in KINDS.values() for each in some):
                assert (await works.request(0, readable, writable))[-1] == 0
