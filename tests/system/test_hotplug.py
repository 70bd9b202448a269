"""Devices that come and go under Linux's own hotplug."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import (
    VM,
    ConsoleConfig,
    CpusConfig,
    DiskConfig,
    HotplugError,
    HotplugMethod,
    HotplugTimeout,
    MemoryConfig,
    NetConfig,
    PlatformConfig,
    RebootPolicy,
    UsageError,
    VsockConfig,
)
from aiovmm.native import lib
from tests.open_files import descriptors
from tests.system.conftest import RELEASES, Guests
from tests.system.guest import appears, prompt, reboot, shell, shell_status
from tests.system.test_vhost_user import storage_daemon

MB = 1 << 20


def image(path: Path, size: int = 8 * MB) -> Path:
    path.write_bytes(os.urandom(size))
    return path


async def md5(vm: VM, device: str) -> str:
    return (await shell(vm, f"md5sum < {device}")).split()[0]


@pytest.mark.parametrize("release", RELEASES)
async def test_a_disk_comes_is_used_and_goes(guests: Guests, folder: Path, release: str) -> None:
    first, second = image(folder / "a.img"), image(folder / "b.img")
    config = guests.config(release, disks=(DiskConfig(path=first),), platform=PlatformConfig(num_pci_segments=3))
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        slots = (await shell(vm, "ls /sys/bus/pci/slots")).split()
        assert len(slots) == 3 * 31
        for segment in (0, 2):
            id_ = await vm.add(DiskConfig(path=second, pci_segment=segment, serial="late"))
            await appears(vm, "/dev/vdb")
            assert (await shell(vm, "cat /sys/block/vdb/serial")).strip() == "late"
            assert await md5(vm, "/dev/vdb") == hashlib.md5(second.read_bytes()).hexdigest()
            await shell(vm, "dd if=/dev/urandom of=/dev/vdb bs=1M count=8 conv=fsync 2>/dev/null")
            assert await md5(vm, "/dev/vdb") == hashlib.md5(second.read_bytes()).hexdigest()
            await vm.remove(id_)
            assert (await shell_status(vm, "test -e /dev/vdb"))[1] == 1
        await vm.remove("disk0")
        assert (await shell(vm, "ls /sys/block | grep vd || true")) == ""
        assert not [line for line in (await shell(vm, "dmesg")).splitlines() if "rror" in line and "ACPI" in line]


async def test_a_disk_that_goes_while_it_is_read_fails_its_reads_alone(guests: Guests, folder: Path) -> None:
    stays, goes = image(folder / "a.img"), image(folder / "b.img", 64 * MB)
    async with VM(guests.config("6.1", disks=(DiskConfig(path=stays),))) as vm:
        await vm.start()
        await prompt(vm)
        id_ = await vm.add(DiskConfig(path=goes))
        await appears(vm, "/dev/vdb")
        await shell(
            vm,
            "(while dd if=/dev/vdb of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done; echo > /tmp/over) & true",
        )
        await asyncio.sleep(0.5)
        await vm.remove(id_)
        await appears(vm, "/tmp/over")
        assert await md5(vm, "/dev/vda") == hashlib.md5(stays.read_bytes()).hexdigest()
        await shell(vm, "test ! -e /sys/block/vdb")
        assert await vm.add(DiskConfig(path=goes)) == "disk1"
        await appears(vm, "/dev/vd[bc]")


async def test_over_a_reboot_what_was_plugged_stays_plugged(guests: Guests, folder: Path) -> None:
    late = image(folder / "late.img")
    config = guests.config("6.1", on_reboot=RebootPolicy.RESTART)
    config = replace(config, payload=replace(config.payload, cmdline=f"{config.cmdline} reboot=a"))
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, "modprobe virtio_blk")
        await vm.add(DiskConfig(path=late, pci_device_id=7))
        await appears(vm, "/dev/vda")
        await reboot(vm)
        await prompt(vm)
        assert await md5(vm, "/dev/vda") == hashlib.md5(late.read_bytes()).hexdigest()
        assert "0000:00:07.0" in await shell(vm, "readlink -f /sys/block/vda/device")
        await vm.remove("disk0")
        assert (await shell_status(vm, "test -e /dev/vda"))[1] == 1


async def test_a_guest_without_hotplug_is_told_in_vain(guests: Guests, folder: Path) -> None:
    config = guests.config("6.1")
    config = replace(config, payload=replace(config.payload, cmdline=f"{config.cmdline} acpiphp.disable=1"))
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        with pytest.raises(HotplugTimeout, match="has not looked"):
            await vm.add(DiskConfig(path=image(folder / "a.img")), timeout=2)
        assert (await shell(vm, "echo alive")).strip() == "alive"


@pytest.mark.parametrize(("release", "shared"), [("6.1", False), ("6.12", True), ("newest", False)])
async def test_memory_comes_is_filled_and_comes_back(guests: Guests, release: str, shared: bool) -> None:
    size, more = 256 * MB, 512 * MB
    memory = MemoryConfig(size, shared=shared, hotplug_size=more, hotplug_method=HotplugMethod.VIRTIO_MEM)
    async with VM(replace(guests.config(release), memory=memory)) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, "echo online_movable > /sys/devices/system/memory/auto_online_blocks; mkdir -p /big")
        total = await mem_total(vm)
        for _ in range(3):
            await vm.resize(memory=size + more, timeout=120)
            assert abs(await mem_total(vm) - total - more) < 64 * MB
            await shell(
                vm, "mount -t tmpfs -o size=450m none /big && dd if=/dev/zero of=/big/file bs=1M count=300 2>/dev/null"
            )
            assert await vm.memory.resident() > 300 * MB
            await shell(vm, "umount /big")
            await vm.resize(memory=size, timeout=120)
            assert abs(await mem_total(vm) - total) < 64 * MB
            assert hot_resident(vm) < 16 * MB
        assert (await shell(vm, "echo alive")).strip() == "alive"


@pytest.mark.parametrize("release", ["6.1", "newest"])
async def test_memory_comes_and_goes_while_there_is_little(guests: Guests, release: str) -> None:
    """A writer waits for memory and fills it as it comes; what is full is not given back, and nothing of it is lost."""
    size, more = 256 * MB, 512 * MB
    memory = MemoryConfig(size, hotplug_size=more, hotplug_method=HotplugMethod.VIRTIO_MEM)
    async with VM(replace(guests.config(release), memory=memory)) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, "echo online_movable > /sys/devices/system/memory/auto_online_blocks")
        await shell(vm, "mkdir /big; mount -t tmpfs -o size=700m none /big")
        await shell(vm, f"({FILL}) > /dev/null 2>&1 & true")
        await appears(vm, "/big/2.sum")
        await asyncio.sleep(1)  # it waits, or what follows comes sooner; no matter
        assert (await shell_status(vm, "test -e /tmp/full"))[1] == 1
        await vm.resize(memory=size + more, timeout=120)
        await shell(
            vm, "for i in $(seq 1200); do test -e /tmp/full && break; sleep 0.1; done; test -e /tmp/full", timeout=240
        )
        assert await vm.memory.resident() > 480 * MB
        with pytest.raises(HotplugError):
            await vm.resize(memory=size, timeout=5)
        await shell(vm, "cd /big; for n in $(seq 23); do md5sum -c -s $n.sum || exit 1; done; cd /", timeout=240)
        assert not [
            line for line in (await shell(vm, "dmesg")).splitlines() if "Out of memory" in line or "oom" in line
        ]
        await shell(vm, "umount /big")
        await vm.resize(memory=size, timeout=120)
        assert hot_resident(vm) < 16 * MB


FILL = (
    "cd /big; free() { awk '/MemAvailable/ {print $2}' /proc/meminfo; }; for n in $(seq 23); do "
    "while test $(free) -lt 61440; do usleep 20000; done; "
    "dd if=/dev/urandom of=$n bs=1M count=20; md5sum $n > $n.new; mv $n.new $n.sum; done; echo > /tmp/full"
)
"""Files of 20 MiB while there are 60 to be had."""


async def test_a_vhost_user_device_comes_to_a_guest_that_runs(guests: Guests, folder: Path) -> None:
    disk = image(folder / "late.img", 16 * MB)
    path = folder / "qsd.sock"
    config = guests.config("6.1")
    config = replace(config, memory=replace(config.memory, shared=True))
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        for _ in range(2):
            async with storage_daemon(disk, path):
                id_ = await vm.add(DiskConfig(vhost_user=True, socket=path))
                await shell(vm, "modprobe virtio_blk")
                await appears(vm, "/dev/vda")
                assert await md5(vm, "/dev/vda") == hashlib.md5(disk.read_bytes()).hexdigest()
                await shell(vm, "dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync 2>/dev/null")
                assert await md5(vm, "/dev/vda") == hashlib.md5(disk.read_bytes()).hexdigest()
                await vm.remove(id_)
                assert (await shell_status(vm, "test -e /dev/vda"))[1] == 1
        assert (await shell(vm, "echo alive")).strip() == "alive"


async def mem_total(vm: VM) -> int:
    return int((await shell(vm, "grep MemTotal /proc/meminfo")).split()[1]) << 10


def hot_resident(vm: VM) -> int:
    """Of the memory that comes and goes."""
    region = vm.machine.memory.regions[-1]
    return int(lib.avmm_mem_resident(region.host, region.size))


@pytest.mark.parametrize("release", RELEASES)
async def test_processors_come_and_go_under_load(guests: Guests, release: str) -> None:
    config = replace(guests.config(release), cpus=CpusConfig(1, 8))
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        assert (await shell(vm, "nproc; cat /sys/devices/system/cpu/possible")).split() == ["1", "0-7"]
        await shell(vm, "(while :; do :; done) & true")
        for count in (3, 2, 8, 2):
            await vm.resize(cpus=count, timeout=120)
            await shell(vm, ONLINE, timeout=120)
            assert (await shell(vm, "nproc", timeout=120)).strip() == str(count)
            assert len(vm.machine.vcpus) == count
        await vm.resize(cpus=1, timeout=120)
        assert (await shell(vm, "nproc; cat /sys/devices/system/cpu/present")).split() == ["1", "0"]
        with pytest.raises(UsageError):
            await vm.resize(cpus=9)


ONLINE = "for c in /sys/devices/system/cpu/cpu[1-9]*; do test $(cat $c/online) = 1 || echo 1 > $c/online; done"


@pytest.mark.parametrize("release", RELEASES)
async def test_memory_modules_come_and_go(guests: Guests, release: str) -> None:
    size, module = 256 * MB, 128 * MB
    memory = MemoryConfig(size, hotplug_size=4 * module, hotplugged_size=module)
    async with VM(replace(guests.config(release), memory=memory)) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, "cat /sys/bus/acpi/devices/PNP0C80:*/path")
        await shell(vm, "echo online_movable > /sys/devices/system/memory/auto_online_blocks")
        before = await mem_total(vm)
        await vm.resize(memory=size + 4 * module, timeout=120)
        assert abs(await mem_total(vm) - before - 3 * module) < 32 * MB
        await shell(
            vm,
            "mkdir /big; mount -t tmpfs -o size=450m none /big; dd if=/dev/zero of=/big/f bs=1M count=300 2>/dev/null",
            timeout=120,
        )
        assert await vm.memory.resident() > 300 * MB
        await shell(vm, "umount /big")
        await vm.resize(memory=size + module, timeout=120)
        assert abs(await mem_total(vm) - before) < 32 * MB
        assert await vm.memory.resident() < size + module + 16 * MB
        await vm.resize(memory=size + 2 * module, timeout=120)
        assert abs(await mem_total(vm) - before - module) < 32 * MB


ROUNDS = int(os.environ.get("AIOVMM_ROUNDS", "30"))
"""A round takes a quarter of a minute, and three times that on a busy machine."""
TAP = "10.77.0"


@pytest.mark.timeout(5400)  # all of it; each step of a round has a limit of its own
@pytest.mark.parametrize(("release", "iommu"), [("6.1", False), ("6.12", True), ("newest", True)])
async def test_thirty_rounds_of_everything_under_load(guests: Guests, folder: Path, release: str, iommu: bool) -> None:
    """In segments 0 and 2 in turn; behind the IOMMU in the latter, if there is one."""
    stays, goes = image(folder / "a.img", 32 * MB), image(folder / "b.img", 32 * MB)
    platform = PlatformConfig(num_pci_segments=3, iommu_segments=(2,) if iommu else ())
    config = guests.config(release, disks=(DiskConfig(path=stays),), platform=platform)
    expected = {path: hashlib.md5(path.read_bytes()).hexdigest() for path in (stays, goes)}
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        await shell(
            vm,
            "for m in virtio_net vmw_vsock_virtio_transport virtio_console; do modprobe $m; done; "
            "ls /sys/class/net > /tmp/nets",
        )
        before = descriptors()
        for number in range(ROUNDS):
            segment = 2 * (number % 2)
            disk = await vm.add(DiskConfig(path=goes, pci_segment=segment, serial=f"round{number}"))
            net = await vm.add(NetConfig(ip=f"{TAP}.1", mask="255.255.255.0", pci_segment=segment))
            await vm.add(VsockConfig(pci_segment=segment))
            await vm.add(ConsoleConfig(pci_segment=segment))
            name = (await shell(vm, LATE.replace("SERIAL", f"round{number}"))).strip()
            assert await md5(vm, f"/dev/{name}") == expected[goes]
            await shell(vm, UP.replace("TAP", TAP), timeout=120)
            await appears(vm, "/dev/hvc0")  # else the next line would make a file of that name
            await shell(vm, "echo round > /dev/hvc0")
            async with asyncio.timeout(60):
                assert (await vm.console.readline()).strip() == b"round"
            await shell(
                vm,
                f"(while dd if=/dev/{name} of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done; echo > /tmp/over) & true",
            )
            for id_ in (disk, net, "vsock", "console"):
                await vm.remove(id_, timeout=120)
            await appears(vm, "/tmp/over")
            await shell(vm, "rm /tmp/over")
            assert await md5(vm, "/dev/vda") == expected[stays]
            assert [p.id for p in vm._plugged() if p.id not in ("rng", "disk0", "iommu")] == []
        assert descriptors() <= before
    assert hashlib.md5(goes.read_bytes()).hexdigest() == expected[goes]


LATE = (
    "for i in $(seq 600); do for d in /sys/block/vd*; do grep -qx SERIAL $d/serial && n=${d##*/}; done; "
    'test -n "$n" && test -e /dev/$n && break; sleep 0.05; done; echo $n; n='
)
UP = (
    'for i in $(seq 600); do e=$(ls /sys/class/net | grep -v -F -x -f /tmp/nets | head -n1); test -n "$e" && break; sleep 0.05; '
    "done; ip addr add TAP.2/24 dev $e && ip link set $e up && ping -c 3 -W 20 TAP.1 > /dev/null"
)
