"""Overlays and images that are not raw under Linux's driver: guests that boot on them, and checksums on both sides."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, DiskConfig, EventKind
from aiovmm.devices.virtio.blk import BlkDevice
from aiovmm.devices.virtio.blk.engine import IoKind
from tests.system.conftest import Guests
from tests.system.guest import ended, prompt, shell

MB = 1 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, timeout=120)


def random_image(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


async def power_off(vm: VM) -> None:
    vm.serial.write(b"poweroff\n")
    assert (await ended(vm)).ok
    kinds = [event.kind async for event in vm.events(from_start=True)]
    assert EventKind.DEVICE_ERROR not in kinds


async def sum_of(vm: VM, device: str) -> str:
    return (await shell(vm, f"md5sum /dev/{device}", timeout=120)).split()[0]


async def test_guests_boot_with_an_overlay_and_with_qcow2(guests: Guests, folder: Path) -> None:
    """Both at once: what the guest reads is what is there, what it writes is what the next one reads, and no base is changed."""
    base = random_image(folder / "base", 32 * MB)
    before = base.read_bytes()
    qemu_img("convert", "-f", "raw", "-O", "qcow2", base, folder / "disk.qcow2")
    disks = (
        DiskConfig(path=base, overlay=folder / "top"),
        DiskConfig(path=base, overlay=folder / "other"),
        DiskConfig(path=folder / "disk.qcow2", num_queues=2),
    )
    config = guests.config("6.1", disks=disks)
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        disk = vm.device("disk0")
        assert isinstance(disk, BlkDevice)
        assert disk.io is IoKind.URING
        assert [await sum_of(vm, name) for name in ("vda", "vdb", "vdc")] == [md5(before)] * 3
        write = (
            "dd if=/dev/urandom of=/dev/{} bs=1M seek=5 count=8 conv=fsync; dd if=/bin/busybox of=/dev/{} bs=512 seek=3"
        )
        for name in ("vda", "vdc"):
            await shell(vm, f"({write.format(name, name)}; sync) 2>/dev/null", timeout=60)
        await shell(vm, "echo 3 > /proc/sys/vm/drop_caches")
        written = [await sum_of(vm, name) for name in ("vda", "vdc")]
        assert await sum_of(vm, "vdb") == md5(before), "two overlays over one base see each other"
        await power_off(vm)
    assert base.read_bytes() == before
    qemu_img("convert", "-f", "qcow2", "-O", "raw", folder / "disk.qcow2", folder / "raw")
    assert md5((folder / "raw").read_bytes()) == written[1]
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        assert [await sum_of(vm, name) for name in ("vda", "vdc")] == written
        await power_off(vm)


@pytest.mark.thorough
@pytest.mark.parametrize(("format_", "name"), [("vpc", "disk.vhd"), ("vhdx", "disk.vhdx")])
async def test_vhd_and_vhdx(guests: Guests, folder: Path, format_: str, name: str) -> None:
    raw = random_image(folder / "raw", 16 * MB)
    qemu_img("convert", "-f", "raw", "-O", format_, raw, folder / name)
    config = guests.config("6.12", disks=(DiskConfig(path=folder / name),))
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        assert (await shell(vm, "dd if=/dev/vda bs=1M count=16 2>/dev/null | md5sum")).split()[0] == md5(
            raw.read_bytes()
        )
        await shell(vm, "dd if=/dev/zero of=/dev/vda bs=1M seek=4 count=4 conv=fsync")
        await power_off(vm)
    qemu_img("convert", "-f", format_, "-O", "raw", folder / name, folder / "after")
    content = bytearray(raw.read_bytes())
    content[4 * MB : 8 * MB] = bytes(4 * MB)
    assert (folder / "after").read_bytes()[: 16 * MB] == content


@pytest.mark.thorough
async def test_a_file_system_on_overlays_of_overlays(
    guests: Guests, with_mke2fs: dict[str, Path], folder: Path
) -> None:
    """Made in the first, filled in the second, trimmed in the third; each is what it was when the next one was put over it."""
    base = folder / "base"
    base.touch()
    os.truncate(base, 256 * MB)
    config = guests.config("6.12")
    config = replace(config, payload=replace(config.payload, initramfs=with_mke2fs["6.12"]))
    steps = (
        "mkfs.ext4 -q /dev/vda && mkdir -p /mnt && mount -t ext4 /dev/vda /mnt && cp /bin/busybox /mnt/one && sync",
        "mkdir -p /mnt && mount -t ext4 /dev/vda /mnt && cp /mnt/one /mnt/two && sync",
        "mkdir -p /mnt && mount -t ext4 /dev/vda /mnt && rm /mnt/one && fstrim /mnt && sync",
    )
    below = base
    for number, step in enumerate(steps):
        top = folder / f"overlay{number}"
        disk = DiskConfig(path=below, overlay=top, backing_files=True)
        async with VM(replace(config, disks=(disk,))) as vm:
            await vm.start()
            await prompt(vm)
            await shell(vm, f"{step} && echo 3 > /proc/sys/vm/drop_caches", timeout=120)
            sums = await shell(vm, "md5sum /bin/busybox $(find /mnt -type f) | cut -c1-32")
            assert len(sums.split()) == (3 if number == 1 else 2)
            assert len(set(sums.split())) == 1
            assert "error" not in (await shell(vm, "umount /mnt; dmesg | grep -i vda || true"))
            await power_off(vm)
        below = top
