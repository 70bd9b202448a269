"""An NVMe drive of the host in a stock guest by iommufd: the kernel's own, and not the model of tests/vfio."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from aiovmm import VM, DeviceConfig, EventKind, PlatformConfig
from aiovmm.errors import HostError
from tests.system.conftest import Guests
from tests.system.guest import prompt
from tests.system.host_pci import give_to
from tests.system.nvme import MB, appears, files_open, read_on_host, write, writes_reboots_and_is_killed

pytestmark = [pytest.mark.kvmhost(profile="iommufd"), pytest.mark.timeout(400)]
BY_IOMMUFD = PlatformConfig(iommufd=True)


async def test_a_guest_drives_it(guests: Guests, drive: Path) -> None:
    await writes_reboots_and_is_killed(guests, drive, platform=BY_IOMMUFD)
    assert not files_open()


async def test_it_comes_and_goes_with_a_virtual_iommu_and_without(guests: Guests, drive: Path) -> None:
    """Between the rounds the host's own driver has it."""
    platform = PlatformConfig(iommufd=True, num_pci_segments=2, iommu_segments=(1,))
    async with VM(guests.config("6.12", memory=256, platform=platform)) as vm:
        await vm.start()
        await prompt(vm)
        for segment in (0, 1, 0):
            await vm.add(DeviceConfig(path=drive, pci_segment=segment))
            await appears(vm)
            expected = await write(vm)
            (place,) = vm.machine.parts.hosts
            reachable = sum(size for _, size in place.space.mapped)
            assert 0 < reachable < 64 * MB if segment else reachable >= 256 * MB
            await vm.remove("device0", timeout=120)
            assert not files_open()
            assert hashlib.sha256(read_on_host(drive, 8 * MB)).hexdigest() == expected
            give_to(drive, "vfio-pci")
        await vm.kill()
        seen = [event.kind async for event in vm.events(from_start=True)]
    assert EventKind.DEVICE_ERROR not in seen


async def test_its_file_and_iommufd_are_handed_in(guests: Guests, drive: Path) -> None:
    (own,) = (drive / "vfio-dev").iterdir()
    iommu, file = (os.open(path, os.O_RDWR) for path in ("/dev/iommu", f"/dev/vfio/devices/{own.name}"))
    config = guests.config(
        memory=256, platform=PlatformConfig(iommufd=True, iommufd_fd=iommu), devices=(DeviceConfig(fd=file),)
    )
    try:
        async with VM(config) as vm:
            await vm.start()
            await prompt(vm)
            expected = await write(vm)
        assert sorted(files_open()) == ["/dev/iommu", f"/dev/vfio/devices/{own.name}"]
        with pytest.raises(HostError, match="bound once in its life"):
            async with VM(config):
                pass
    finally:
        os.close(file)
        os.close(iommu)
    assert hashlib.sha256(read_on_host(drive, 8 * MB)).hexdigest() == expected


def allow_unsafe_interrupts(yes_or_no: str) -> None:
    Path("/sys/module/iommufd/parameters/allow_unsafe_interrupts").write_text(yes_or_no)


async def test_what_the_kernel_refuses_is_said(guests: Guests, drive: Path) -> None:
    config = guests.config(platform=BY_IOMMUFD, devices=(DeviceConfig(path=drive),))
    allow_unsafe_interrupts("N")
    try:
        with pytest.raises(HostError, match="modprobe iommufd allow_unsafe_interrupts=1"):
            async with VM(config):
                pass
    finally:
        allow_unsafe_interrupts("Y")
    async with VM(config):
        with pytest.raises(HostError, match="another VM, has it"):
            async with VM(config):
                pass
    assert not files_open()
