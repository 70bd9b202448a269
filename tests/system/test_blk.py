"""virtio-blk under Linux's driver: file systems, checksums on both sides, discard, read-only, queues, resizing, root disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, DiskConfig, EventKind, RebootPolicy, VMConfig
from aiovmm.devices.virtio.blk import BlkDevice
from aiovmm.devices.virtio.blk.engine import IoKind
from tests.system.conftest import GUESTS, RELEASES, Guests
from tests.system.guest import ended, limit, prompt, reboot, shell, shell_status
from tests.system.shown import CONSOLE

MB = 1 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a real file system: /tmp is a tmpfs there, which refuses O_DIRECT."""
    path = Path("/var/tmp/test_blk")
    path.mkdir()
    yield path
    shutil.rmtree(path)


def sparse(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def ext4(path: Path, size: int, root: Path | None = None) -> Path:
    sparse(path, size)
    contents = [] if root is None else ["-d", str(root)]
    subprocess.run(["mke2fs", "-q", "-t", "ext4", *contents, str(path)], check=True, timeout=60)
    return path


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def check_clean(image: Path) -> None:
    done = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def md5_inside(image: Path, name: str, out: Path) -> str:
    subprocess.run(["debugfs", "-R", f"dump /{name} {out}", str(image)], check=True, capture_output=True, timeout=60)
    with out.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


async def power_off(vm: VM) -> None:
    vm.serial.write(b"poweroff\n")
    assert (await ended(vm)).ok


def with_disk(guests: Guests, disk: DiskConfig, release: str = "6.1", **changes: object) -> VMConfig:
    return guests.config(release, disks=(disk,), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("release", "direct"), [("6.1", False), ("6.12", True)], ids=["6.1", "6.12-direct"])
async def test_a_file_system_made_filled_and_trimmed_by_the_guest(
    guests: Guests, with_mke2fs: dict[str, Path], folder: Path, release: str, direct: bool
) -> None:
    image = sparse(folder / "disk.img", 512 * MB)
    config = with_disk(guests, DiskConfig(path=image, direct=direct, serial="scratch"), release)
    config = replace(config, payload=replace(config.payload, initramfs=with_mke2fs[release]))
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        disk = vm.device("disk0")
        assert isinstance(disk, BlkDevice)
        assert disk.io is IoKind.URING
        assert (await shell(vm, "cat /sys/block/vda/serial")).strip() == "scratch"
        assert (await shell(vm, "cat /sys/block/vda/queue/write_cache")).strip() == "write back"
        await shell(vm, "mkfs.ext4 -q /dev/vda && mkdir -p /mnt && mount -t ext4 /dev/vda /mnt")
        assert allocated(image) < 64 * MB, "mke2fs filled the sparse image"
        await shell(vm, "dd if=/dev/urandom of=/mnt/random bs=1M count=128 && sync", timeout=120)
        written = (await shell(vm, "md5sum /mnt/random", timeout=60)).split()[0]
        await shell(vm, "echo 3 > /proc/sys/vm/drop_caches")
        assert (await shell(vm, "md5sum /mnt/random", timeout=60)).split()[0] == written
        assert allocated(image) > 128 * MB
        await shell(vm, "cp /mnt/random /mnt/copy && sync && rm /mnt/copy && sync", timeout=120)
        full = allocated(image)
        await shell(vm, "fstrim /mnt")
        assert allocated(image) < full - 100 * MB
        await shell(vm, "umount /mnt")
        assert "error" not in (await shell(vm, "dmesg | grep vda || true"))
        counters = disk.counters
        assert counters.errors == 0
        assert counters.written_bytes > 256 * MB
        await power_off(vm)
    check_clean(image)
    assert md5_inside(image, "random", folder / "random") == written


async def test_a_read_only_disk_refuses_to_be_written(guests: Guests, folder: Path) -> None:
    image = ext4(folder / "disk.img", 64 * MB)
    before = hashlib.md5(image.read_bytes()).digest()
    async with VM(with_disk(guests, DiskConfig(path=image, readonly=True))) as vm:
        await vm.start()
        await prompt(vm)
        assert (await shell(vm, "cat /sys/block/vda/ro")).strip() == "1"
        await shell(vm, "mkdir -p /mnt && mount -t ext4 -o ro /dev/vda /mnt")
        output, status = await shell_status(vm, "touch /mnt/file")
        assert status != 0
        assert "Read-only file system" in output
        assert (await shell_status(vm, "mount -o remount,rw /mnt"))[1] != 0
        assert (await shell_status(vm, "dd if=/dev/zero of=/dev/vda bs=4k count=1"))[1] != 0
        await power_off(vm)
    assert hashlib.md5(image.read_bytes()).digest() == before


async def test_four_queues_and_a_disk_that_grows(guests: Guests, folder: Path) -> None:
    image = sparse(folder / "disk.img", 128 * MB)
    config = with_disk(guests, DiskConfig(path=image, num_queues=4, id="data"), cpus=2)
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        assert len((await shell(vm, "ls /sys/block/vda/mq")).split()) == 2  # one for each CPU, of the four
        write = (
            "taskset {0} sh -c 'dd if=/dev/urandom of=/tmp/{1} bs=1M count=16 && "
            "dd if=/tmp/{1} of=/dev/vda bs=1M seek={2} conv=fsync'"
        )
        await shell(vm, f"{write.format(1, 'a', 0)} & {write.format(2, 'b', 64)}; wait", timeout=120)
        sums = [line.split()[0] for line in (await shell(vm, "md5sum /tmp/a /tmp/b")).splitlines()]
        with image.open("rb") as file:
            found = [hashlib.md5(os.pread(file.fileno(), 16 * MB, at * MB)).hexdigest() for at in (0, 64)]
        assert found == sums
        disk = vm.device("data")
        assert isinstance(disk, BlkDevice)
        await disk.resize(256 * MB)
        await shell(vm, "until [ $(cat /sys/block/vda/size) = 524288 ]; do sleep 0.1; done", timeout=20)
        await shell(vm, "dd if=/tmp/a of=/dev/vda bs=1M seek=240 conv=fsync")
        os.truncate(image, 300 * MB)
        await disk.refresh()
        await shell(vm, "until [ $(cat /sys/block/vda/size) = 614400 ]; do sleep 0.1; done", timeout=20)
        await power_off(vm)


@pytest.mark.parametrize("release", RELEASES)
async def test_the_root_file_system_is_on_the_disk(guests: Guests, folder: Path, release: str) -> None:
    root = folder / "root"
    for name in ("bin", "sbin", "dev", "proc", "sys", "run", "etc"):
        (root / name).mkdir(parents=True)
    shutil.copy(GUESTS / "bin/busybox", root / "bin/busybox")
    init = root / "sbin/init"
    init.write_text(
        "#!/bin/busybox sh\nb=/bin/busybox\n$b echo root is $($b sed -n 's/ \\/ ext4.*//p' /proc/mounts)\n"
        "$b dd if=/bin/busybox of=/copy conv=fsync\n$b mount -o remount,ro /\n$b poweroff -f\n"
    )
    init.chmod(0o755)
    image = ext4(folder / "disk.img", 64 * MB, root)
    cmdline = f"console={CONSOLE} panic=-1 quiet root=/dev/vda rootfstype=ext4"
    async with VM(with_disk(guests, DiskConfig(path=image), release, cmdline=cmdline)) as vm:
        await vm.start()
        await vm.serial.expect(rb"root is /dev/vda", timeout=limit(120))
        assert (await ended(vm)).ok
    check_clean(image)
    busybox = hashlib.md5((GUESTS / "bin/busybox").read_bytes()).hexdigest()
    assert md5_inside(image, "copy", folder / "copy") == busybox


async def unbind_under_load(vm: VM, disk: BlkDevice) -> None:
    """Take the disk from its driver while four programs read and write it, and give it back."""
    before = disk.counters
    await shell(
        vm, "for i in 0 1; do dd if=/dev/vda of=/dev/null bs=4k skip=$((i * 4096)) iflag=direct & done 2>/dev/null"
    )
    await shell(
        vm, "for i in 0 1; do dd if=/dev/zero of=/dev/vda bs=4k seek=$((i * 4096)) oflag=direct & done 2>/dev/null"
    )
    async with asyncio.timeout(limit(30)):
        while not (disk.counters.reads > before.reads and disk.counters.writes > before.writes):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await shell(vm, "kill -0 $! && echo $d >/sys/bus/virtio/drivers/virtio_blk/unbind; wait")
    assert (await shell(vm, "ls /dev/vda 2>/dev/null || echo gone")).strip() == "gone"
    await shell(vm, "echo $d >/sys/bus/virtio/drivers/virtio_blk/bind && dd if=/dev/vda of=/dev/null bs=1M count=1")


@pytest.mark.timeout(500)
async def test_drivers_come_and_go_and_the_guest_reboots_under_load(guests: Guests, folder: Path) -> None:
    image = sparse(folder / "disk.img", 128 * MB)
    config = with_disk(guests, DiskConfig(path=image, num_queues=2), cpus=2, on_reboot=RebootPolicy.RESTART)
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        disk = vm.device("disk0")
        assert isinstance(disk, BlkDevice)
        reload = "rmmod virtio_blk && modprobe virtio_blk && dd if=/dev/vda of=/dev/null bs=1M count=1 2>/tmp/log"
        loop = f"for i in $(seq 20); do {reload} || {{ cat /tmp/log; echo failed in round $i; break; }}; done"
        assert "failed" not in await shell(vm, loop, timeout=150)
        await shell(vm, "d=$(basename $(readlink -f /sys/block/vda/device)); dmesg -c >/dev/null")
        for _ in range(20):
            await unbind_under_load(vm, disk)
        assert not re.search(r"WARNING: CPU|BUG:|Oops", await shell(vm, "dmesg"))
        for _ in range(2):
            await shell(vm, "for i in 1 2 3 4; do dd if=/dev/zero of=/dev/vda bs=64k & done 2>/dev/null")
            await reboot(vm)
            await prompt(vm)
        await shell(vm, "dd if=/dev/vda of=/dev/null bs=1M count=64")
        await power_off(vm)
        kinds = [event.kind async for event in vm.events(from_start=True)]
        assert EventKind.DEVICE_ERROR not in kinds
