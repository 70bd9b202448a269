"""As many PCI segments as there can be, as a guest on bare metal finds them by the firmware's tables."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from aiovmm import VM, ConsoleConfig, ConsoleMode, DiskConfig, PlatformConfig, RngConfig, VMConfig, VsockConfig
from aiovmm.boot.acpi import aml
from aiovmm.config.machine import MAX_SEGMENTS
from aiovmm.devices.virtio.blk.protocol import Request, Status
from aiovmm.machine.architecture import board_of_host
from aiovmm.pci.root import PciAddress
from tests.limits import HANGS
from tests.vm.drivers import start_driver
from tests.vm.guest import config, counts_on
from tests.vm.hotplug_guest import vendor

pytestmark = pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers")

CONFIGURED = 0x70000
BRIDGE, NOTHING = 0x0D57_8086, 0xFFFF_FFFF
PLACES = {0: "console", 1: "vsock", 50: "disk", 95: "rng"}
KINDS = {"console": 3, "vsock": 19, "disk": 2, "rng": 4}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"of segment 50".ljust(1 << 20, b"\0"))
    return path


def everywhere(image: Path, does: str) -> VMConfig:
    return config(
        does,
        platform=PlatformConfig(num_pci_segments=MAX_SEGMENTS),
        console=ConsoleConfig(ConsoleMode.NULL),
        vsock=VsockConfig(pci_segment=1),
        disks=(DiskConfig(path=image, readonly=True, pci_segment=50),),
        rng=RngConfig(pci_segment=95),
    )


async def enumerated(vm: VM) -> None:
    async with asyncio.timeout(HANGS):
        assert await vm.serial.readexactly(1) == b"E"


async def test_a_guest_finds_each_by_the_tables_and_what_is_in_it(image: Path) -> None:
    async with VM(everywhere(image, "E")) as vm:
        await vm.start()
        await enumerated(vm)
        assert int.from_bytes(vm.machine.memory.read(0x60024, 4), "little") == MAX_SEGMENTS
        words = struct.iter_unpack("<32I", vm.machine.memory.read(CONFIGURED, 128 * MAX_SEGMENTS))
        low = vm.machine.memory.read(0xA0000, 0x50000)
    for segment, slots in enumerate(words):
        kind = KINDS.get(PLACES.get(segment, ""))
        there = NOTHING if kind is None else 0x1040_1AF4 + (kind << 16)
        assert list(slots) == [BRIDGE, there, *[NOTHING] * 30], segment
    dsdt = low[low.index(b"DSDT") :]
    for segment in range(MAX_SEGMENTS):
        assert dsdt.count(b"PC%02X" % segment + aml.name("_HID", aml.eisa_id("PNP0A08"))) == 1
        assert dsdt.count(aml.name("_SEG", aml.integer(segment))) == 1


async def test_in_each_a_disk_comes_is_read_and_goes(image: Path) -> None:
    async with VM(everywhere(image, "EZ")) as vm:
        await vm.start()
        await enumerated(vm)
        segments = range(MAX_SEGMENTS)
        disks = [DiskConfig(path=image, readonly=True, pci_segment=segment, id=f"d{segment}") for segment in segments]
        await asyncio.gather(*(vm.add(disk, timeout=HANGS) for disk in disks))
        await counts_on(vm, 2)  # the guest has sized the last one's BARs
        slots = [1 + (segment in PLACES) for segment in segments]
        for segment, slot in enumerate(slots):
            assert vm.machine.devices.address(f"d{segment}") == PciAddress(segment, slot)
            driver = await start_driver(vm, f"d{segment}")
            answer = await driver.request(0, [struct.pack("<IIQ", Request.IN, 0, 0)], [512, 1])
            assert answer == b"of segment 50".ljust(512, b"\0") + bytes([Status.OK])
            await driver.reset()
        await asyncio.gather(*(vm.remove(f"d{segment}", timeout=HANGS) for segment in segments))
        assert {vendor(vm, slot, segment) for segment, slot in enumerate(slots)} == {0xFFFF}
        await counts_on(vm)
