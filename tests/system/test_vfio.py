"""An NVMe drive of the host in a stock guest: I/O with checksums, reboot, the guest killed, the drive usable again."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovmm import VM, DeviceConfig, EventKind, RebootPolicy
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
        passthrough = vm.machine.parts.passthrough
        assert passthrough is not None
        (place,) = passthrough.places
        reachable = sum(size for _, size in place.container.mapped)
        assert 0 < reachable < 64 * MB  # what the driver has mapped, not all of memory


@pytest.mark.kvmhost(profile="vfio")
async def test_a_drive_that_the_host_uses_is_refused_before_there_is_a_vm(guests: Guests, drive: Path) -> None:
    give_to(drive, "nvme")
    with pytest.raises(HostError, match="driver nvme holds it") as refused:
        async with VM(guests.config(devices=(DeviceConfig(path=drive),))):
            pass
    assert "driver_override" in str(refused.value)
