"""An NVMe drive of the host in a stock guest: I/O with checksums, reboot, hotplug, the guest killed, the drive usable again."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

import pytest

from aiovmm import VM, DeviceConfig, EventKind, PlatformConfig, SnapshotError
from aiovmm.errors import HostError
from tests.system.conftest import Guests
from tests.system.guest import prompt, shell
from tests.system.host_pci import give_to
from tests.system.nvme import MB, appears, checksum, files_open, read_on_host, write, writes_reboots_and_is_killed
from tests.system.shown import CONSOLE, SHOWN, WAITS_FOR_IOMMU


@pytest.mark.kvmhost(profile="vfio")
@pytest.mark.timeout(400)
async def test_a_guest_drives_an_nvme_drive_of_the_host(guests: Guests, drive: Path) -> None:
    await writes_reboots_and_is_killed(guests, drive)


@pytest.mark.kvmhost(profile="vfio")
async def test_a_guest_that_is_told_to_use_no_messages_drives_it_by_intx(guests: Guests, drive: Path) -> None:
    cmdline = f"console={CONSOLE} panic=-1 quiet pci=nomsi"
    async with VM(guests.config(devices=(DeviceConfig(path=drive),), cmdline=cmdline, rng=None)) as vm:
        await vm.start()
        await prompt(vm)
        await write(vm)
        lines = (await shell(vm, "grep nvme /proc/interrupts")).splitlines()
        assert all(SHOWN.pin in line for line in lines), lines
        assert sum(int(line.split()[1]) for line in lines) > 8


@pytest.mark.kvmhost(profile="vfio")
async def test_a_drive_behind_the_virtual_iommu(guests: Guests, drive: Path) -> None:
    behind = DeviceConfig(path=drive, iommu=True)
    config = guests.config("6.12", memory=256, devices=(behind,), cmdline=WAITS_FOR_IOMMU)
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        await appears(vm)
        groups = await shell(
            vm, "for d in /sys/bus/pci/devices/*; do cat $d/class; readlink $d/iommu_group || echo none; done"
        )
        assert re.search(r"0x010802\n\S*/iommu_groups/\d+\n", groups)
        await write(vm)
        (place,) = vm.machine.parts.hosts
        reachable = sum(size for _, size in place.space.mapped)
        assert 0 < reachable < 64 * MB  # what the driver has mapped, not all of memory


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
            await appears(vm)
            if expected:
                assert await checksum(vm) == expected
            expected = await write(vm)
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
            assert not files_open()
            data = read_on_host(drive, 8 * MB)
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
    assert not files_open()
    assert [e.kind for e in seen].count(EventKind.DEVICE_ADDED) == 4
    assert EventKind.DEVICE_ERROR not in [e.kind for e in seen]
    assert hashlib.sha256(read_on_host(drive, 8 * MB)).hexdigest() == expected


@pytest.mark.kvmhost(profile="vfio")
@pytest.mark.timeout(400)
async def test_a_drive_comes_to_a_guest_that_runs_behind_the_virtual_iommu(guests: Guests, drive: Path) -> None:
    platform = PlatformConfig(num_pci_segments=2, iommu_segments=(1,))
    async with VM(guests.config("6.12", memory=256, platform=platform)) as vm:
        await vm.start()
        await prompt(vm)
        for _ in range(2):
            await vm.add(DeviceConfig(path=drive, pci_segment=1))
            await appears(vm)
            assert "/iommu_groups/" in await shell(vm, "readlink /sys/bus/pci/devices/0001:00:01.0/iommu_group")
            await write(vm)
            (place,) = vm.machine.parts.hosts
            assert 0 < sum(size for _, size in place.space.mapped) < 64 * MB
            await vm.remove("device0", timeout=120)
            assert not place.space.mapped
            assert not files_open()


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
