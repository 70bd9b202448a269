"""An NVMe drive of the host in a stock guest: I/O with checksums, reboot, hotplug, the guest killed, the drive usable again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aiovmm import VM, DeviceConfig, EventKind, PlatformConfig, RebootPolicy, SnapshotError
from aiovmm.errors import HostError
from tests.system.conftest import Guests
from tests.system.guest import limit, prompt, shell
from tests.system.host_pci import devices_of_class, give_to
from tests.system.shown import CONSOLE, SHOWN

MB = 1 << 20


def _drive() -> Path:
    drives = devices_of_class("0x010802")
    assert drives, "this host has no NVMe drive: it is the vfio profile's"
    return drives[0]


@pytest.fixture
def drive() -> Iterator[Path]:
    """The drive's sysfs directory, vfio-pci its driver; nvme again afterwards."""
    subprocess.run(["modprobe", "-a", "nvme", "vfio-pci"], check=True)
    device = _drive()
    give_to(device, "vfio-pci")
    yield device
    give_to(device, "nvme")


def _read_on_host(device: Path, size: int) -> bytes:
    """The drive's first bytes, as the host's own driver reads them."""
    give_to(device, "nvme")
    deadline = time.monotonic() + 30
    while not (found := [Path("/dev", entry.name) for entry in device.glob("nvme/nvme*/nvme*n1")]):
        assert time.monotonic() < deadline, "the host's driver does not find the drive's namespace"
        time.sleep(0.05)  # it looks for it in a work queue of its own
    with found[0].open("rb") as file:
        return file.read(size)


async def _write(vm: VM) -> str:
    """8 MiB of noise onto the drive, read back past the page cache; their checksum."""
    await shell(vm, "dd if=/dev/urandom of=/tmp/noise bs=1M count=8 2>/dev/null")
    await shell(vm, "dd if=/tmp/noise of=/dev/nvme0n1 bs=1M conv=fsync 2>/dev/null")
    expected = (await shell(vm, "sha256sum < /tmp/noise")).split()[0]
    assert await _checksum(vm) == expected
    return expected


async def _checksum(vm: VM) -> str:
    await shell(vm, "echo 3 > /proc/sys/vm/drop_caches")
    return (await shell(vm, "dd if=/dev/nvme0n1 bs=1M count=8 2>/dev/null | sha256sum")).split()[0]


@pytest.mark.kvmhost(profile="vfio")
@pytest.mark.timeout(400)
async def test_a_guest_drives_an_nvme_drive_of_the_host(guests: Guests, drive: Path) -> None:
    config = guests.config(memory=256, devices=(DeviceConfig(path=drive),), on_reboot=RebootPolicy.RESTART)
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        expected = await _write(vm)
        interrupts = await shell(vm, "grep nvme /proc/interrupts")
        assert SHOWN.message in interrupts
        assert sum(int(word) for word in interrupts.split() if word.isdigit()) > 8

        vm.serial.write(b"reboot -f\n")
        async with asyncio.timeout(limit(60)):
            async for event in vm.events():
                if event.kind is EventKind.REBOOTED:
                    break
        await prompt(vm)
        assert await _checksum(vm) == expected
        vm.serial.write(b"dd if=/dev/nvme0n1 of=/dev/null bs=64k &\n")  # killed with reads under way
        await prompt(vm)
        await vm.kill()
    data = _read_on_host(drive, 8 * MB)
    assert hashlib.sha256(data).hexdigest() == expected


@pytest.mark.kvmhost(profile="vfio")
async def test_a_guest_that_is_told_to_use_no_messages_drives_it_by_intx(guests: Guests, drive: Path) -> None:
    cmdline = f"console={CONSOLE} panic=-1 quiet pci=nomsi"
    async with VM(guests.config(devices=(DeviceConfig(path=drive),), cmdline=cmdline, rng=None)) as vm:
        await vm.start()
        await prompt(vm)
        await _write(vm)
        lines = (await shell(vm, "grep nvme /proc/interrupts")).splitlines()
        assert all(SHOWN.pin in line for line in lines), lines
        assert sum(int(line.split()[1]) for line in lines) > 8


@pytest.mark.kvmhost(profile="vfio")
async def test_a_drive_behind_the_virtual_iommu(guests: Guests, drive: Path) -> None:
    config = guests.config("6.12", memory=256, devices=(DeviceConfig(path=drive, iommu=True),))
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        groups = await shell(
            vm, "for d in /sys/bus/pci/devices/*; do cat $d/class; readlink $d/iommu_group || echo none; done"
        )
        assert re.search(r"0x010802\n\S*/iommu_groups/\d+\n", groups)
        await _write(vm)
        (place,) = vm.machine.parts.hosts
        reachable = sum(size for _, size in place.space.mapped)
        assert 0 < reachable < 64 * MB  # what the driver has mapped, not all of memory


async def _appears(vm: VM) -> None:
    await shell(vm, "for i in $(seq 600); do test -b /dev/nvme0n1 && break; sleep 0.05; done; test -b /dev/nvme0n1")


def _groups_open() -> list[str]:
    """Files of VFIO that this process has open."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return [link for link in links if link.startswith("/dev/vfio/")]


@pytest.mark.kvmhost(profile="vfio")
@pytest.mark.timeout(600)
async def test_a_drive_comes_to_a_guest_that_runs_goes_and_comes_again(
    guests: Guests, drive: Path, folder: Path
) -> None:
    """Between two rounds the host's own driver has it, while the guest runs on. In the second it goes with reads under way, in
    the third by force, while the guest stands still; in the fourth it stays to the guest's end."""
    expected = ""
    async with VM(guests.config(memory=256)) as vm:
        await vm.start()
        await prompt(vm)
        for number in range(4):
            id_ = await vm.add(DeviceConfig(path=drive))
            assert id_ == "device0"
            await _appears(vm)
            if expected:
                assert await _checksum(vm) == expected
            expected = await _write(vm)
            interrupts = await shell(vm, "grep nvme /proc/interrupts")
            assert SHOWN.message in interrupts
            assert sum(int(word) for word in interrupts.split() if word.isdigit()) > 8
            with pytest.raises(SnapshotError, match="device0"):
                await vm.snapshot(folder / "snapshot")
            if number == 3:
                break
            if number == 2:
                await vm.pause()
                await vm.remove(id_, force=True)
                await vm.resume()
            else:
                if number == 1:
                    reading = "while dd if=/dev/nvme0n1 of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done"
                    await shell(vm, f"({reading}; echo > /tmp/over) & true")
                await vm.remove(id_, timeout=120)
                await shell(vm, "test ! -e /dev/nvme0n1")
                if number == 1:
                    await shell(
                        vm, "for i in $(seq 600); do test -e /tmp/over && break; sleep 0.05; done; test -e /tmp/over"
                    )
            assert not _groups_open()
            data = _read_on_host(drive, 8 * MB)
            assert hashlib.sha256(data).hexdigest() == expected
            give_to(drive, "vfio-pci")
            assert (await shell(vm, "echo alive")).strip() == "alive"
            await shell(
                vm, "for i in $(seq 600); do test -e /dev/nvme0n1 || break; sleep 0.05; done; test ! -e /dev/nvme0n1"
            )
        removal = asyncio.ensure_future(vm.remove("device0", timeout=None))
        await asyncio.sleep(0)
        await vm.kill()
        await asyncio.wait([removal])
        removal.exception()
        seen = [event async for event in vm.events(from_start=True)]
    assert not _groups_open()
    assert [e.kind for e in seen].count(EventKind.DEVICE_ADDED) == 4
    assert EventKind.DEVICE_ERROR not in [e.kind for e in seen]
    assert hashlib.sha256(_read_on_host(drive, 8 * MB)).hexdigest() == expected


@pytest.mark.kvmhost(profile="vfio")
@pytest.mark.timeout(400)
async def test_a_drive_comes_to_a_guest_that_runs_behind_the_virtual_iommu(guests: Guests, drive: Path) -> None:
    platform = PlatformConfig(num_pci_segments=2, iommu_segments=(1,))
    async with VM(guests.config("6.12", memory=256, platform=platform)) as vm:
        await vm.start()
        await prompt(vm)
        for _ in range(2):
            await vm.add(DeviceConfig(path=drive, pci_segment=1))
            await _appears(vm)
            assert "/iommu_groups/" in await shell(vm, "readlink /sys/bus/pci/devices/0001:00:01.0/iommu_group")
            await _write(vm)
            (place,) = vm.machine.parts.hosts
            assert 0 < sum(size for _, size in place.space.mapped) < 64 * MB
            await vm.remove("device0", timeout=120)
            assert not place.space.mapped
            assert not _groups_open()


@pytest.mark.kvmhost(profile="vfio")
async def test_a_drive_that_the_host_uses_is_refused_before_there_is_a_vm(guests: Guests, drive: Path) -> None:
    give_to(drive, "nvme")
    with pytest.raises(HostError, match="driver nvme holds it") as refused:
        async with VM(guests.config(devices=(DeviceConfig(path=drive),))):
            pass
    async with VM(guests.config()) as vm:
        with pytest.raises(HostError, match="driver nvme holds it"):
            await vm.add(DeviceConfig(path=drive))
    assert "driver_override" in str(refused.value)
