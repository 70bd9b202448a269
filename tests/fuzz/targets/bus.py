"""A PCI bus with one of each device and a driver that does anything: configuration space, BARs, rings in memory, doorbells,
requests. What the devices say of it are faults of a guest's; what a vCPU is shown without asking is what the device would say."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from aiovmm.errors import AiovmmError
from aiovmm.memory import GuestMemory
from aiovmm.pci.bar import FIRST_BAR
from aiovmm.pci.plan import Window, plan_segments
from aiovmm.pci.root import PciRoot
from aiovmm.pci.virtio import VirtioPci
from aiovmm.testing.pci import ECAM_BASE, MMIO32, RecordingServices
from tests.fuzz.source import Source
from tests.hostile.rarer import RARER
from tests.hostile.targets import USUAL, Disk, Target

_RAM = 1 << 20
_DEVICES = len(USUAL) + 1 + len(RARER)
_PLAN = plan_segments(1, ECAM_BASE, MMIO32, Window(4 << 30, 1 << 30))[0]
_COMMON = (0, 4, 8, 12, 16, 18, 20, 22, 24, 26, 28, 30, 32, 36, 40, 44, 48, 52, 56, 60)  # of the first BAR
SEEDS = [
    b"",
    b"\0\1\4\2\6\0" * 8,
    bytes([1, 0x14, 0, 1, 1, 0x14, 0, 3, 3, 0, 1, 0, 16, 1, 0, 8, 4, 0, 0, 5]) * 4,
    bytes(range(200)),
]


class Unexpected(Exception):
    """What an event loop was told of without an exception."""


class _Services(RecordingServices):
    def number(self, address: int) -> int:
        """Of 32 bits, which are there at once."""
        return int.from_bytes(self.read(address, 4), "little")


class _Machine:
    """Lives through many inputs: to make one takes a thousand times as long as an input does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.place = tempfile.TemporaryDirectory(prefix="aiovmm-fuzz-")
        self.memory = GuestMemory.create([(0, _RAM)])
        self.services = _Services(self.memory)
        self.errors: list[BaseException] = []
        self.root = PciRoot([_PLAN], self.services)
        kinds: list[type[Target]] = [*USUAL.values(), Disk, *RARER.values()]
        self.targets = [kind(Path(self.place.name)) for kind in kinds]
        for target in self.targets:
            target.power_on(self.memory)
            self.root.add(VirtioPci(target.device, self.services, on_error=lambda _, error: self.errors.append(error)))
        loop.set_exception_handler(lambda _, said: self.errors.append(said.get("exception") or Unexpected(said)))

    async def open(self) -> None:
        for target in self.targets:
            await target.open()

    async def close(self) -> None:
        await self.root.close()
        for target in self.targets:
            await target.close()
        self.services.close()
        self.memory.close()
        self.place.cleanup()

    def ecam(self, slot: int, offset: int) -> int:
        return _PLAN.ecam_base + (slot << 15) + offset

    def bar(self, slot: int) -> int:
        low, high = (self.services.number(self.ecam(slot, FIRST_BAR + offset)) for offset in (0, 4))
        return (low & ~15) | (high << 32 if low & 4 else 0)


async def _step(machine: _Machine, source: Source) -> None:
    services, slot = machine.services, 1 + source.below(_DEVICES)
    what, width = source.below(8), source.one((1, 2, 4, 8))
    if what == 0:
        services.answer(machine.ecam(slot, source.number(2) % 4096), min(width, 4))
    elif what == 1:
        width = min(width, 4)
        waits = services.write(machine.ecam(slot, source.number(2) % 4096), source.take(width).ljust(width, b"\0"))
        if waits is not None:
            await waits
    elif what < 6:
        offset = source.one(_COMMON) if what < 5 else source.number(2) % (1 << 15)
        address = machine.bar(slot) + offset
        if what == 2:
            answer = services.answer(address, width)
            if not isinstance(answer, bytes):
                await answer
            return
        waits = services.write(address, source.take(width).ljust(width, b"\0"))
        if waits is not None:
            await waits
    elif what == 6:
        data = source.some(64)
        machine.memory.write(source.number(3) % (_RAM - 64), data)
    else:
        for _ in range(1 + source.below(4)):
            await asyncio.sleep(0)


_loop = asyncio.new_event_loop()
_machine: _Machine | None = None
_lives = 0


def run(data: bytes) -> None:
    global _machine, _lives
    if _machine is None or _lives > 200:
        if _machine is not None:
            _loop.run_until_complete(_machine.close())
        _machine, _lives = _Machine(_loop), 0
        _loop.run_until_complete(_machine.open())
    _lives += 1
    _machine.memory.write(0, bytes(0x4000))

    async def go(machine: _Machine) -> None:
        source = Source(data)
        while source:
            await _step(machine, source)
        for _ in range(4):
            await asyncio.sleep(0)

    _loop.run_until_complete(go(_machine))
    errors, _machine.errors[:] = list(_machine.errors), []
    for error in errors:
        if not isinstance(error, AiovmmError):
            raise error
