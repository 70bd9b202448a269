"""An NVMe drive of the host that guests are given: taken from the host and given back, and what a guest does with it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aiovmm import VM, DeviceConfig, RebootPolicy
from tests.system import guest
from tests.system.conftest import Guests
from tests.system.guest import prompt, reboot, shell
from tests.system.host_pci import devices_of_class, give_to
from tests.system.shown import SHOWN

MB = 1 << 20


def _drive() -> Path:
    drives = devices_of_class("0x010802")
    assert drives, "this host has no NVMe drive: it is the vfio profile's"
    return drives[0]


@contextmanager
def taken_drive() -> Iterator[Path]:
    """The drive's sysfs directory, vfio-pci its driver; nvme again afterwards."""
    subprocess.run(["modprobe", "-a", "nvme", "vfio-pci"], check=True)
    device = _drive()
    give_to(device, "vfio-pci")
    try:
        yield device
    finally:
        give_to(device, "nvme")


def read_on_host(device: Path, size: int) -> bytes:
    """The drive's first bytes, as the host's own driver reads them."""
    give_to(device, "nvme")
    deadline = time.monotonic() + 30
    while not (found := [Path("/dev", entry.name) for entry in device.glob("nvme/nvme*/nvme*n1")]):
        assert time.monotonic() < deadline, "the host's driver does not find the drive's namespace"
        time.sleep(0.05)  # it looks for it in a work queue of its own
    with found[0].open("rb") as file:
        return file.read(size)


async def write(vm: VM) -> str:
    """8 MiB of noise onto the drive, read back past the page cache; their checksum."""
    await shell(vm, "dd if=/dev/urandom of=/tmp/noise bs=1M count=8 2>/dev/null")
    await shell(vm, "dd if=/tmp/noise of=/dev/nvme0n1 bs=1M conv=fsync 2>/dev/null")
    expected = (await shell(vm, "sha256sum < /tmp/noise")).split()[0]
    assert await checksum(vm) == expected
    return expected


async def checksum(vm: VM) -> str:
    await shell(vm, "echo 3 > /proc/sys/vm/drop_caches")
    return (await shell(vm, "dd if=/dev/nvme0n1 bs=1M count=8 2>/dev/null | sha256sum")).split()[0]


async def appears(vm: VM) -> None:
    await guest.appears(vm, "/dev/nvme0n1")


def files_open() -> list[str]:
    """Files of VFIO that this process has open."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return [link for link in links if link.startswith(("/dev/vfio/", "/dev/iommu"))]


async def writes_reboots_and_is_killed(guests: Guests, drive: Path, **more: Any) -> None:
    """A guest with the drive does; the host's own driver then finds what it wrote."""
    config = guests.config(memory=256, devices=(DeviceConfig(path=drive),), on_reboot=RebootPolicy.RESTART, **more)
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        expected = await write(vm)
        interrupts = await shell(vm, "grep nvme /proc/interrupts")
        assert SHOWN.message in interrupts
        assert sum(int(word) for word in interrupts.split() if word.isdigit()) > 8

        await reboot(vm)
        await prompt(vm)
        assert await checksum(vm) == expected
        vm.serial.write(b"dd if=/dev/nvme0n1 of=/dev/null bs=64k &\n")  # killed with reads under way
        await prompt(vm)
        await vm.kill()
    data = read_on_host(drive, 8 * MB)
    assert hashlib.sha256(data).hexdigest() == expected
