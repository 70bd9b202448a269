"""Devices behind a virtio-iommu, under the drivers of stock kernels (6.12 has one for it, 6.1 has none)."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from aiovmm import VM, DiskConfig, EventKind, ExitReason, NetConfig, RebootPolicy, RngConfig
from aiovmm.devices.virtio.iommu import IommuDevice
from tests.system.conftest import Guests
from tests.system.guest import BOOT, appears, ended, prompt, reboot, shell
from tests.system.shown import SHOWN, WAITS_FOR_IOMMU
from tests.system.traffic import sha256, transfer

MIB = 1 << 20
HOST = "192.168.77.1"


async def write_and_read_back(vm: VM, image: Path, at: int) -> None:
    """4 MiB to the disk past the guest's caches, and back; the host sees the same."""
    await shell(vm, "dd if=/dev/urandom of=/tmp/x bs=64k count=64 2>/dev/null")
    await shell(vm, f"dd if=/tmp/x of=/dev/vda bs=64k seek={at * 64} oflag=direct 2>/dev/null")
    back = await shell(vm, f"dd if=/dev/vda bs=64k skip={at * 64} count=64 iflag=direct 2>/dev/null | sha256sum")
    assert back == await shell(vm, "sha256sum </tmp/x")
    with image.open("rb") as file:
        file.seek(at * 4 * MIB)
        assert sha256(file.read(4 * MIB)) == back.split()[0]


async def under_load(vm: VM, image: Path, number: int) -> None:
    """The disk is written past all caches while the wire carries data both ways; then each is compared with what it should be."""
    await shell(vm, "dd if=/dev/urandom of=/tmp/x bs=64k count=64 2>/dev/null")
    copies = " ".join(str(n) for n in range(2, 10))
    work = f"for n in {copies}; do dd if=/tmp/x of=/dev/vda bs=64k seek=$((n * 64)) oflag=direct 2>/dev/null; done"
    await shell(vm, f"({work}; echo written >/tmp/done-{number}) & true")
    # The driver maps and unmaps each piece of each frame and request by a request of its own: slow, and slower on a busy machine.
    await transfer(vm, HOST, random.Random(number).randbytes(2 * MIB), timeout=200)
    await shell(vm, f"while [ ! -e /tmp/done-{number} ]; do sleep 0.1; done", timeout=200)
    expected = (await shell(vm, "sha256sum </tmp/x")).split()[0]
    with image.open("rb") as file:
        for n in range(2, 10):
            file.seek(n * 4 * MIB)
            assert sha256(file.read(4 * MIB)) == expected
    read = "dd if=/dev/vda bs=64k skip=128 count=512 iflag=direct 2>/dev/null | sha256sum"
    back = await shell(vm, read, timeout=200)
    assert back == await shell(vm, "for n in 1 2 3 4 5 6 7 8; do cat /tmp/x; done | sha256sum")


async def on_the_wire(vm: VM) -> None:
    await shell(vm, "ip address add 192.168.77.2/24 dev eth0; ip link set eth0 up")


async def test_a_disk_behind_the_iommu(guests: Guests, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, 64 * MIB)
    disk = DiskConfig(path=image, iommu=True)
    async with VM(guests.config("6.12", cmdline=WAITS_FOR_IOMMU, rng=None, disks=(disk,))) as vm:
        iommu = vm.device("iommu")
        assert isinstance(iommu, IommuDevice)
        await vm.start()
        await prompt(vm)
        assert len((await shell(vm, "ls -d /sys/kernel/iommu_groups/*/devices/*")).split()) == 1
        await write_and_read_back(vm, image, 1)
        assert iommu.domains.mapped > 0
        assert iommu.faults == 0


@pytest.mark.timeout(900)
async def test_devices_work_behind_the_iommu_and_reach_only_what_is_mapped(guests: Guests, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, 64 * MIB)
    config = guests.config(
        "6.12",
        cmdline=WAITS_FOR_IOMMU,
        rng=RngConfig(iommu=True),
        disks=(DiskConfig(path=image, iommu=True),),
        nets=(NetConfig(ip=HOST, mask="255.255.255.0", iommu=True),),
        on_reboot=RebootPolicy.RESTART,
    )
    async with VM(config) as vm:
        iommu = vm.device("iommu")
        assert isinstance(iommu, IommuDevice)
        await vm.start()
        await prompt(vm)
        groups = await shell(vm, "ls -d /sys/kernel/iommu_groups/*/devices/*; cat /sys/kernel/iommu_groups/*/type")
        print(groups)
        assert sorted(re.findall(r"0000:00:\w\w\.0", groups)) == ["0000:00:01.0", "0000:00:02.0", "0000:00:03.0"]
        assert groups.count("DMA") == 3
        assert iommu.domains.mapped > 0
        await shell(vm, "dd if=/dev/hwrng bs=4096 count=16 iflag=fullblock of=/dev/null 2>/dev/null")
        await on_the_wire(vm)
        await under_load(vm, image, 1)
        for module in ("virtio_blk", "virtio_rng", "virtio_net") * 2:
            await shell(vm, f"modprobe -r {module} && modprobe {module}")
        await shell(vm, "dd if=/dev/hwrng bs=4096 count=4 iflag=fullblock of=/dev/null 2>/dev/null")
        await on_the_wire(vm)
        await under_load(vm, image, 2)
        log = await shell(vm, "dmesg | grep -v fpu__init_system_xstate")  # TCG's processor, not ours
        assert not re.search(r"WARNING|BUG|Oops|fault from EP", log), log
        print(f"{iommu.domains.mapped} mappings at the end, {iommu.faults} faults")

        await reboot(vm, b"reboot")
        await vm.serial.expect(rb"aiovmm: init", timeout=BOOT)
        await prompt(vm)
        await write_and_read_back(vm, image, 3)
        vm.serial.write(b"poweroff\n")
        assert (await ended(vm)).reason is ExitReason.SHUTDOWN
        assert iommu.faults == 0
        assert EventKind.DEVICE_ERROR not in [e.kind async for e in vm.events(from_start=True)]


async def test_a_kernel_without_a_driver_for_it_works_as_if_it_were_not_there(guests: Guests, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, 64 * MIB)
    config = guests.config("6.1", rng=RngConfig(iommu=True), disks=(DiskConfig(path=image, iommu=True),))
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, SHOWN.told_of_iommu)
        await appears(vm, "/dev/vda")  # arm64's waits for the driver for a while
        await write_and_read_back(vm, image, 1)
        await shell(vm, "dd if=/dev/hwrng bs=4096 count=4 iflag=fullblock of=/dev/null 2>/dev/null")
