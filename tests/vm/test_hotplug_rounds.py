"""Rounds of a disk, a card, a vsock and a console that come, are used by their drivers, and go in the middle of that."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from errno import EIO
from pathlib import Path
from typing import Any, cast

import pytest

from aiovmm import (
    VM,
    ConsoleConfig,
    ConsoleMode,
    DiskConfig,
    MemoryConfig,
    NetConfig,
    PlatformConfig,
    VMConfig,
    VsockConfig,
)
from aiovmm.config import PlacedConfig
from aiovmm.devices.virtio.blk.protocol import Request, Status
from aiovmm.devices.virtio.iommu.wire import Status as IommuStatus
from aiovmm.errors import AiovmmError
from aiovmm.machine.architecture import board_of_host
from aiovmm.machine.iommu import endpoint_id
from aiovmm.pci.root import PciAddress
from tests.devices.virtio.net_guest import NetGuest
from tests.devices.virtio.vsock.guest import CID, Guest
from tests.limits import HANGS
from tests.open_files import descriptors
from tests.vm.drivers import Driver, start_driver
from tests.vm.guest import config, until
from tests.vm.hotplug_guest import let_go, look, vendor

pytestmark = pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers")

ROUNDS = int(os.environ.get("AIOVMM_ROUNDS") or (30 if os.environ.get("AIOVMM_THOROUGH") else 6))
MIB = 1 << 20
RAM = 16 * MIB
SECTORS, AT_ONCE = 2048, 8
RINGS = 4 * MIB
"""Where drivers have their rings and buffers, a MiB each: first those of what stays."""
DOMAIN = 1
PORT = 7
SIZES = (1, 100, 4096, 9000)


class Image:
    """What a disk is known to have. A write under way when the disk goes may have been made or not: its sectors are then looked
    at in the file."""

    def __init__(self, path: Path, dice: random.Random) -> None:
        self.path = path
        self.content = bytearray(dice.randbytes(512 * SECTORS))
        self.dice = dice
        self.under_way: tuple[int, bytes] | None = None
        self.done = 0
        path.write_bytes(self.content)

    async def use(self, driver: Driver) -> None:
        """Without end: reads, which have to be right, and writes."""
        while True:
            sector = self.dice.randrange(SECTORS - AT_ONCE)
            place = slice(512 * sector, 512 * (sector + AT_ONCE))
            if self.dice.random() < 0.5:
                answer = await driver.request(0, [struct.pack("<IIQ", Request.IN, 0, sector)], [512 * AT_ONCE, 1])
                check_status(answer)
                assert answer[:-1] == self.content[place]
            else:
                data = self.dice.randbytes(512 * AT_ONCE)
                self.under_way = sector, data
                check_status(await driver.request(0, [struct.pack("<IIQ", Request.OUT, 0, sector), data], [1]))
                self.content[place], self.under_way = data, None
            self.done += 1

    def check(self) -> None:
        """Nobody writes to it any more: the file is as it is known to be."""
        there = self.path.read_bytes()
        if self.under_way is not None:
            sector, data = self.under_way
            place = slice(512 * sector, 512 * sector + len(data))
            for at in range(place.start, place.stop, 512):  # sectors are written as wholes
                sectors = (self.content[at : at + 512], data[at - place.start : at - place.start + 512])
                assert there[at : at + 512] in sectors
            self.content[place], self.under_way = there[place], None
        assert there == self.content


def check_status(answer: bytes) -> None:
    if answer[-1:] != bytes([Status.OK]):
        raise OSError(EIO, "the disk refuses it")


class Frames:
    """The two ends of a card."""

    def __init__(self, dice: random.Random) -> None:
        self.host, self.card = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.host.setblocking(False)
        self.dice = dice
        self.done = 0

    async def use(self, driver: Driver) -> None:
        """Frames both ways, one after the other."""
        loop = asyncio.get_running_loop()
        guest = NetGuest(cast(Any, driver))
        guest.fill(16)
        while True:
            there, back = (self.dice.randbytes(self.dice.choice(SIZES) // 8 + 60) for _ in range(2))
            await loop.sock_sendall(self.host, there)
            assert (await guest.receive()).frame == there
            await guest.send(back)
            assert await loop.sock_recv(self.host, 2048) == back
            self.done += 1


class Stream:
    """A connection from the host to the guest, by vsock."""

    def __init__(self, vm: VM, dice: random.Random) -> None:
        self.vm = vm
        self.dice = dice
        self.done = 0

    async def use(self, driver: Driver) -> None:
        """Bytes both ways."""
        async with Guest(cast(Any, driver)) as guest:
            guest.listen(PORT)
            (reader, writer), sock = await asyncio.gather(self.vm.vsock.connect(PORT, wait=True), guest.accept(PORT))
            try:
                while True:
                    there, back = (self.dice.randbytes(self.dice.choice(SIZES)) for _ in range(2))
                    writer.write(there)
                    assert await sock.recv_exactly(len(there)) == there
                    await sock.send(back)
                    assert await reader.readexactly(len(back)) == back
                    self.done += 1
            finally:
                writer.close()


class Lines:
    """What a console says and hears."""

    def __init__(self, vm: VM, dice: random.Random) -> None:
        self.vm = vm
        self.dice = dice
        self.done = 0

    async def use(self, driver: Driver) -> None:
        """Lines both ways."""
        while True:
            there, back = (self.dice.randbytes(40).hex().encode() + b"\n" for _ in range(2))
            self.vm.console.write(there)
            heard = b""
            while not heard.endswith(there):  # what the one before has not taken is before it
                heard += await driver.request(0, (), [64])
            await driver.request(1, [back])
            while await self.vm.console.readline() != back:
                pass
            self.done += 1


Use = Image | Frames | Stream | Lines


async def pulse(drivers: list[Driver]) -> None:
    """Interrupts go to the guest: have drivers that wait for one look instead."""
    while True:
        await asyncio.sleep(0.001)
        for queue in (queue for driver in drivers for queue in driver.queues):
            queue.irq.pulse()


async def behind(vm: VM, iommu: Driver | None, id_: str) -> None:
    """Its addresses are those of DOMAIN from now on, if there is an IOMMU."""
    if iommu is not None:
        assert await attached(iommu, vm.machine.devices.address(id_)) is IommuStatus.OK


async def attached(iommu: Driver, place: PciAddress) -> IommuStatus:
    """The driver asks for what is at `place` to be in DOMAIN."""
    request = struct.pack("<B3xIII4x", 1, DOMAIN, endpoint_id(place), 0)
    return IommuStatus((await iommu.request(0, [request], [4]))[0])


async def in_the_middle(*uses: Use) -> None:
    """Wait until each has done something more."""
    before = [use.done for use in uses]
    await until(lambda: all(use.done > done + 2 for use, done in zip(uses, before, strict=True)))


class Plugged:
    """A device that is used until it is to go; its driver may see that, wait for ever, or be at something else."""

    def __init__(self, id_: str, use: Use, driver: Driver, group: asyncio.TaskGroup) -> None:
        self.id = id_
        self._goes = False
        self._task = group.create_task(self._use(use, driver))

    async def _use(self, use: Use, driver: Driver) -> None:
        try:
            await use.use(driver)
        except (OSError, EOFError, AiovmmError, TimeoutError):
            if not self._goes:
                raise

    async def go(self, vm: VM) -> PciAddress:
        """Where it was."""
        self._goes = True
        place = vm.machine.devices.address(self.id)
        removing = asyncio.create_task(vm.remove(self.id, timeout=HANGS))
        assert await let_go(vm, place.segment) == [place.slot]
        await removing
        assert vendor(vm, place.slot, place.segment) == 0xFFFF
        self._task.cancel()
        await asyncio.wait([self._task])
        return place


class Bench:
    """A VM with a disk that stays, and an IOMMU perhaps."""

    def __init__(self, vm: VM, iommu: Driver | None, drivers: list[Driver]) -> None:
        self.vm, self.iommu, self.drivers = vm, iommu, drivers

    async def plug(self, device: PlacedConfig, use: Use, group: asyncio.TaskGroup) -> Plugged:
        """It comes, and is used."""
        adding = asyncio.create_task(self.vm.add(device, timeout=HANGS))
        await look(self.vm, device.pci_segment)
        id_ = await adding
        await behind(self.vm, self.iommu, id_)
        driver = await start_driver(self.vm, id_, RINGS + len(self.drivers) * MIB, MIB)
        self.drivers.append(driver)
        return Plugged(id_, use, driver, group)

    async def gone(self, place: PciAddress) -> None:
        """The IOMMU knows nothing there any more, and nothing of the domain that it was in."""
        if self.iommu is not None:
            assert await attached(self.iommu, place) is IommuStatus.NOENT

    async def round(self, goes: Image, segment: int, dice: random.Random) -> None:
        """One of each kind comes to `segment`, and goes."""
        vm, there, frames = self.vm, len(self.drivers), Frames(dice)
        with frames.host, frames.card:
            devices: list[tuple[PlacedConfig, Use]] = [
                (DiskConfig(path=goes.path, pci_segment=segment), goes),
                (NetConfig(fd=(frames.card.fileno(),), pci_segment=segment), frames),
                (VsockConfig(cid=CID, pci_segment=segment), Stream(vm, dice)),
                (ConsoleConfig(ConsoleMode.NULL, pci_segment=segment), Lines(vm, dice)),
            ]
            async with asyncio.TaskGroup() as group:
                plugged = [await self.plug(device, use, group) for device, use in devices]
                await in_the_middle(*(use for _, use in devices))
                dice.shuffle(plugged)
                for one in plugged:
                    await self.gone(await one.go(vm))
        goes.check()
        del self.drivers[there:]


def machine(stays: Path, *, iommu: bool) -> VMConfig:
    return config(
        "h",
        memory=MemoryConfig(RAM),
        platform=PlatformConfig(num_pci_segments=3, iommu_segments=(0, 2) if iommu else ()),
        disks=(DiskConfig(path=stays),),
    )


async def bench(vm: VM, *, iommu: bool) -> Bench:
    await vm.start()
    drivers = []
    if iommu:
        drivers.append(await start_driver(vm, "iommu", RINGS, MIB))
        await behind(vm, drivers[0], "disk0")
        mapping = struct.pack("<B3xIQQQI", 3, DOMAIN, 0, RAM - 1, 0, 3)
        assert await drivers[0].request(0, [mapping], [4]) == bytes(4)
    first = drivers[0] if iommu else None
    drivers.append(await start_driver(vm, "disk0", RINGS + len(drivers) * MIB, MIB))
    return Bench(vm, first, drivers)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("iommu", [False, True], ids=["without an IOMMU", "behind an IOMMU"])
async def test_everything_comes_and_goes_under_load(tmp_path: Path, iommu: bool) -> None:
    dice = random.Random(iommu)
    stays, goes = Image(tmp_path / "stays", dice), Image(tmp_path / "goes", dice)
    async with VM(machine(stays.path, iommu=iommu)) as vm:
        b = await bench(vm, iommu=iommu)
        async with asyncio.TaskGroup() as group:
            always = [group.create_task(stays.use(b.drivers[-1])), group.create_task(pulse(b.drivers))]
            for number in range(ROUNDS):
                await b.round(goes, 2 * (number % 2), dice)
                await in_the_middle(stays)
                if number == 1:  # all that is made only once has been made
                    open_then = descriptors()
            assert [plugged.id for plugged in vm._plugged() if plugged.id != "iommu"] == ["disk0"]
            await until(lambda: descriptors() <= open_then)
            for task in always:
                task.cancel()
    stays.check()
