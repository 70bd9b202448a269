"""Devices behind a virtio-iommu, under the drivers of stock kernels (6.12 has one for it, 6.1 has none)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
from pathlib import Path

from aiovmm import VM, DiskConfig, EventKind, ExitReason, NetConfig, RebootPolicy, RngConfig
from aiovmm.devices.virtio.iommu import IommuDevice
from tests.system.conftest import Guests
from tests.system.guest import BOOT, prompt, shell

MIB = 1 << 20
HOST = "192.168.77.1"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def write_and_read_back(vm: VM, image: Path, at: int) -> None:
    """4 MiB to the disk past the guest's caches, and back; the host sees the same."""
    await shell(vm, "dd if=/dev/urandom of=/tmp/x bs=64k count=64 2>/dev/null")
    await shell(vm, f"dd if=/tmp/x of=/dev/vda bs=64k seek={at * 64} oflag=direct 2>/dev/null")
    back = await shell(vm, f"dd if=/dev/vda bs=64k skip={at * 64} count=64 iflag=direct 2>/dev/null | sha256sum")
    assert back == await shell(vm, "sha256sum </tmp/x")
    with image.open("rb") as file:
        file.seek(at * 4 * MIB)
        assert sha256(file.read(4 * MIB)) == back.split()[0]


async def transfer(vm: VM, data: bytes) -> None:
    """The guest gets `data` from a server of the host, then sends it back: one direction after the other, for busybox's nc does
    not read while it writes."""
    back: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def give(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back.set_result(await reader.readexactly(len(data)))
        writer.close()

    for serve, redirection in ((give, "</dev/null >/tmp/y"), (take, "</tmp/y")):
        async with await asyncio.start_server(serve, HOST, 0) as server:
            port = server.sockets[0].getsockname()[1]
            await shell(vm, f"nc {HOST} {port} {redirection}", timeout=60)
    assert (await shell(vm, "sha256sum </tmp/y")).split()[0] == sha256(data)
    assert await asyncio.wait_for(back, 10) == data


async def test_devices_work_behind_the_iommu_and_reach_only_what_is_mapped(guests: Guests, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, 64 * MIB)
    config = guests.config(
        "6.12",
        rng=RngConfig(iommu=True),
        disks=(DiskConfig(path=image, iommu=True),),
        nets=(NetConfig(ip=HOST, mask="255.255.255.0", iommu=True),),
        on_reboot=RebootPolicy.RESTART,
    )
    async with VM(config) as vm:
        iommu = vm.device("iommu")
        assert isinstance(iommu, IommuDevice)
        events = vm.events()
        await vm.start()
        await prompt(vm)
        groups = await shell(vm, "ls -d /sys/kernel/iommu_groups/*/devices/*; cat /sys/kernel/iommu_groups/*/type")
        print(groups)
        assert sorted(re.findall(r"0000:00:\w\w\.0", groups)) == ["0000:00:01.0", "0000:00:02.0", "0000:00:03.0"]
        assert groups.count("DMA") == 3
        assert iommu.domains.mapped > 0
        await write_and_read_back(vm, image, 1)
        await shell(vm, "dd if=/dev/hwrng bs=4096 count=16 iflag=fullblock of=/dev/null 2>/dev/null")
        await shell(vm, "ip addr add 192.168.77.2/24 dev eth0 && ip link set eth0 up")
        await transfer(vm, random.Random(3).randbytes(2 * MIB))
        for module in ("virtio_blk", "virtio_rng", "virtio_net") * 2:
            await shell(vm, f"modprobe -r {module} && modprobe {module}")
        await write_and_read_back(vm, image, 2)
        await shell(vm, "dd if=/dev/hwrng bs=4096 count=4 iflag=fullblock of=/dev/null 2>/dev/null")
        await shell(vm, "ip addr add 192.168.77.2/24 dev eth0 && ip link set eth0 up")
        await transfer(vm, random.Random(4).randbytes(MIB))
        log = await shell(vm, "dmesg | grep -v fpu__init_system_xstate")  # TCG's processor, not ours
        assert not re.search(r"WARNING|BUG|Oops|fault from EP", log), log
        print(f"{iommu.domains.mapped} mappings at the end, {iommu.faults} faults")

        vm.serial.write(b"reboot\n")
        async for event in events:
            if event.kind is EventKind.REBOOTED:
                break
        await vm.serial.expect(rb"aiovmm: init", timeout=BOOT)
        await prompt(vm)
        await write_and_read_back(vm, image, 3)
        vm.serial.write(b"poweroff\n")
        assert (await asyncio.wait_for(vm.wait(), 60)).reason is ExitReason.SHUTDOWN
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
        assert "VIOT" in await shell(vm, "dmesg")
        await write_and_read_back(vm, image, 1)
        await shell(vm, "dd if=/dev/hwrng bs=4096 count=4 iflag=fullblock of=/dev/null 2>/dev/null")
