"""More of them: devices that few guests have."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

from aiovmm.config import PmemConfig
from aiovmm.devices.virtio.iommu import IommuDevice, Translation
from aiovmm.devices.virtio.iommu.wire import Status
from aiovmm.devices.virtio.mem import BLOCK_SIZE, MemDevice
from aiovmm.devices.virtio.mem.protocol import Answer, Kind
from aiovmm.devices.virtio.pmem import ALIGNMENT, PmemDevice
from aiovmm.devices.virtio.rtc import RtcDevice
from aiovmm.devices.virtio.watchdog import WatchdogDevice
from aiovmm.memory import GuestMemory
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.testing.pci import MESSAGES
from tests.hostile.targets import Target

__all__ = ["BLOCKS", "ENDPOINT", "RARER", "START", "Iommu", "Mem"]

ENDPOINT, PROBE_SIZE = 0x18, 512
START, BLOCKS = 1 << 30, 16
_PAGE = 0xE00000  # nobody's


class _Endpoint:
    """A device that never asks for anything."""

    def uses(self, _start: int, _end: int) -> bool:
        return True

    async def revalidate(self) -> None:
        return


class Iommu(Target):
    """With one device behind it, which a good driver puts into a domain."""

    readable, room = (struct.pack("<B3xI64x", 5, ENDPOINT),), (PROBE_SIZE, 4)

    def __init__(self, _place: Path) -> None:
        self.device: IommuDevice = IommuDevice(MESSAGES)

    def power_on(self, memory: GuestMemory) -> None:
        self.device.power_on(memory)
        self.reached: Translation = self.device.translation()
        self.device.add_endpoint(ENDPOINT, self.reached, _Endpoint())
        self.memory = memory

    async def good(self, driver: VirtioPciDriver) -> None:
        domain, address, word = 7, 0x5000_0000, os.urandom(8)
        self.memory.write(_PAGE, word)
        await self._done(driver, struct.pack("<B3xIII4x", 1, domain, ENDPOINT, 0))
        await self._done(driver, struct.pack("<B3xIQQQI", 3, domain, address, address + 0xFFF, _PAGE, 3))
        assert self.reached.read(address, 8) == word
        await self._done(driver, struct.pack("<B3xIQQ4x", 4, domain, address, address + 0xFFF))
        await self._done(driver, struct.pack("<B3xII8x", 2, domain, ENDPOINT))
        assert self.reached.read(_PAGE, 8) == word

    async def _done(self, driver: VirtioPciDriver, request: bytes) -> None:
        assert await driver.request(0, [request], [4]) == bytes([Status.OK, 0, 0, 0])

    async def close(self) -> None:
        await super().close()
        self.device.power_off()


class Mem(Target):
    """A region of a few blocks, all of which it may have."""

    readable, room = (struct.pack("<H6xQH6x", Kind.STATE, START, 1),), (10,)

    def __init__(self, _place: Path) -> None:
        self.device: MemDevice = MemDevice(BLOCKS * BLOCK_SIZE, BLOCKS * BLOCK_SIZE)
        self.region = GuestMemory.create([(START, BLOCKS * BLOCK_SIZE)])
        self.device.power_on(self.region.regions[0])

    async def good(self, driver: VirtioPciDriver) -> None:
        await self._done(driver, Kind.UNPLUG_ALL, 0, 0)
        await self._done(driver, Kind.PLUG, START + BLOCK_SIZE, 2)
        self.region.write(START + BLOCK_SIZE, b"there")
        await self._done(driver, Kind.UNPLUG, START + BLOCK_SIZE, 2)
        assert self.region.read(START + BLOCK_SIZE, 5) == bytes(5)
        assert self.device.blocks.plugged == 0

    async def _done(self, driver: VirtioPciDriver, *request: int) -> None:
        assert await driver.request(0, [struct.pack("<H6xQH6x", *request)], [10]) == bytes([Answer.ACK]) + bytes(9)

    async def close(self) -> None:
        await super().close()
        self.region.close()


class Pmem(Target):
    """A file, which the guest does not look at."""

    readable, room = (struct.pack("<I", 0),), (4,)

    def __init__(self, place: Path) -> None:
        path = place / "pmem"
        path.touch()
        os.truncate(path, ALIGNMENT)
        self.device: PmemDevice = PmemDevice.from_config(PmemConfig(file=path))

    async def good(self, driver: VirtioPciDriver) -> None:
        before = self.device.flushes
        assert await driver.request(0, [struct.pack("<I", 0)], [4]) == bytes(4)
        assert self.device.flushes > before


class Clock(Target):
    """The host's."""

    readable, room = (struct.pack("<H6xH6x", 1, 0),), (16,)

    def __init__(self, _place: Path) -> None:
        self.device = RtcDevice()

    async def good(self, driver: VirtioPciDriver) -> None:
        before = time.time_ns()
        status, now = struct.unpack("<B7xQ", await driver.request(0, [struct.pack("<H6xH6x", 1, 0)], [16]))
        assert status == 0
        assert before <= now <= time.time_ns()


class Watchdog(Target):
    """Of a guest that never stands still."""

    room = (4,)

    def __init__(self, _place: Path) -> None:
        self.silent = 0
        self.device = WatchdogDevice(self._tell, lambda: True)

    def _tell(self) -> None:
        self.silent += 1

    async def good(self, driver: VirtioPciDriver) -> None:
        assert await driver.request(0, [], [1]) == b"\1"
        assert not self.silent


RARER: dict[str, type[Target]] = {"iommu": Iommu, "mem": Mem, "pmem": Pmem, "rtc": Clock, "watchdog": Watchdog}
