"""A PCI bus with one of each device and a driver that does anything: configuration space, BARs, rings in memory, doorbells,
requests; at times what a driver does to begin with, and good chains. What the devices say of it are faults of a guest's; what a
vCPU is shown without asking is what the device would say."""

from __future__ import annotations

import asyncio
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from aiovmm.errors import AiovmmError
from aiovmm.memory import GuestMemory
from aiovmm.pci.bar import FIRST_BAR
from aiovmm.pci.common_config import (
    DEVICE_FEATURE_SELECT,
    DEVICE_STATUS,
    DRIVER_FEATURE,
    DRIVER_FEATURE_SELECT,
    QUEUE_DESC,
    QUEUE_DEVICE,
    QUEUE_DRIVER,
    QUEUE_ENABLE,
    QUEUE_SELECT,
    QUEUE_SIZE,
)
from aiovmm.pci.config_space import CAPABILITIES_START, COMMAND, COMMAND_MASTER, COMMAND_MEM
from aiovmm.pci.doorbells import NOTIFY_MULTIPLIER
from aiovmm.pci.plan import Window, plan_segments
from aiovmm.pci.segment import PciSegment
from aiovmm.pci.services import Place
from aiovmm.pci.virtio import VirtioPci
from aiovmm.pci.virtio_bar import NOTIFY
from aiovmm.testing.pci import ECAM_BASE, MMIO32, RecordedIntxLine, RecordingServices
from aiovmm.virtqueue.device import VirtioDevice
from tests.fuzz.source import Source
from tests.hostile.rarer import RARER
from tests.hostile.targets import USUAL, Disk, Target

_RAM = 1 << 20
_KINDS: dict[int, type[Target]] = dict(enumerate([*USUAL.values(), Disk, *RARER.values()], 1))
_SLOTS = list(_KINDS)
_QUEUES, _SIZE, _AVAILABLE, _USED, _DATA = 4, 16, 0x400, 0x800, 0xC00  # as a driver has them, in a page a queue
_PLAN = plan_segments(1, ECAM_BASE, MMIO32, Window(4 << 30, 1 << 30))[0]
_COMMON = (0, 4, 8, 12, 16, 18, 20, 22, 24, 26, 28, 30, 32, 36, 40, 44, 48, 52, 56, 60)  # of the first BAR
_SIZES = (1, 4, 8, 12, 16, 24, 64, 512)


def _size(least: int) -> int:
    return sum(least > size for size in _SIZES)


def _good(slot: int, kind: type[Target]) -> bytes:
    """To bring it up, and what it answers."""
    made = [bytes([slot - 1, 7, 0, 6, kind.queue, len(kind.readable) + len(kind.room) - 1, len(kind.readable)])]
    for part in kind.readable:
        made.append(bytes([_size(len(part)), len(part)]) + part)
    made += [bytes([_size(room)]) for room in kind.room]
    return bytes([slot - 1, 7, 0, 4, 0]) + b"".join(made) * 2


SEEDS = [
    b"",
    b"\0\1\4\2\6\0" * 8,
    bytes([1, 0x14, 0, 1, 1, 0x14, 0, 3, 3, 0, 1, 0, 16, 1, 0, 8, 4, 0, 0, 5]) * 4,
    bytes(range(200)),
    *(_good(slot, kind) for slot, kind in _KINDS.items()),
]


class Unexpected(Exception):
    """What an event loop was told of without an exception."""


class _Services(RecordingServices):
    def number(self, address: int) -> int:
        """Of 32 bits, which are there at once."""
        return int.from_bytes(self.read(address, 4), "little")

    def intx_line(self, ended: Callable[[], None], place: Place) -> RecordedIntxLine:
        """Its number is the slot's, whatever was there before."""
        pin = RecordedIntxLine(16 + place.slot % 8, ended)
        self.pins.append(pin)
        return pin


class _Machine:
    """Lives through all inputs, since to make one takes a hundred times as long as an input does: `renew` puts back what the last
    one changed."""

    def __init__(self) -> None:
        self.memory = GuestMemory.create([(0, _RAM)])
        self.services = _Services(self.memory)
        self.errors: list[BaseException] = []
        self.written = False  # memory, by whom and where does not matter
        self.changed, self.reached, self.used = set[int](), set[int](), set[int]()
        """Slots: whose configuration space was written, where more than that may be another now, whose device had a driver."""
        self._segment = PciSegment(_PLAN, self.services)
        self._functions: dict[int, VirtioPci] = {}
        self._places: dict[int, tempfile.TemporaryDirectory[str]] = {}
        self._targets: dict[int, Target] = {}
        self._new: dict[int, bytes] = {}  # configuration space

    async def open(self) -> None:
        for slot in _KINDS:
            self._places[slot] = tempfile.TemporaryDirectory(prefix="aiovmm-fuzz-")
            await self._open_device(slot)
            self._plug_in(slot)
            self._new[slot] = bytes(self._functions[slot].config.data)

    async def _open_device(self, slot: int) -> None:
        self._targets[slot] = target = _KINDS[slot](Path(self._places[slot].name))
        target.power_on(self.memory)
        await target.open()

    def _plug_in(self, slot: int) -> None:
        self._functions[slot] = VirtioPci(
            self._targets[slot].device,
            self.services,
            on_error=lambda _, error: self.errors.append(error),
            place=Place(0, slot),
        )
        self._segment.add(self._functions[slot], slot)

    def look(self, slot: int) -> None:
        """After an access. Whatever changes a function or brings a device to life begins with its configuration space."""
        now, new = self._functions[slot].config.data, self._new[slot]
        if now != new:
            self.changed.add(slot)
            if now[:FIRST_BAR] != new[:FIRST_BAR] or now[CAPABILITIES_START:] != new[CAPABILITIES_START:]:
                self.reached.add(slot)
        self.used.update(reached for reached in self.reached if self._functions[reached]._active)

    async def renew(self) -> None:
        for slot in sorted(self.changed - self.reached):
            await self._rewrite(slot)
        for slot in sorted(self.reached):
            await self._segment.remove(slot)
            if slot in self.used:
                await self._targets[slot].close()
                self._clear(slot)
                await self._open_device(slot)
            self._plug_in(slot)
            assert self._functions[slot].config.data == self._new[slot]
        if self.written or self.used:
            self.memory.write(0, bytes(_RAM))
        if self.reached:
            self.services.lines = [line for line in self.services.lines if not line.closed]
            self.services.pins = [pin for pin in self.services.pins if not pin.closed]
        self.services.messages.clear()
        self.written = False
        self.changed.clear()
        self.reached.clear()
        self.used.clear()

    def _clear(self, slot: int) -> None:
        """Of its files. The directory stays: a file system takes long for one."""
        for path in Path(self._places[slot].name).iterdir():
            path.unlink()

    async def _rewrite(self, slot: int) -> None:
        """The function has not decoded its addresses, so this is all."""
        new = self._new[slot]
        for at in range(FIRST_BAR, CAPABILITIES_START, 4):
            if self._functions[slot].config.data[at : at + 4] != new[at : at + 4]:
                await self.store(self.ecam(slot, at), int.from_bytes(new[at : at + 4], "little"), 4)
        assert self._functions[slot].config.data == new

    def device(self, slot: int) -> VirtioDevice:
        return self._targets[slot].device

    def write(self, address: int, data: bytes) -> None:
        self.memory.write(address, data)
        self.written = True

    async def store(self, address: int, value: int, size: int) -> None:
        """A vCPU's write, until it may go on."""
        waits = self.services.write(address, value.to_bytes(size, "little"))
        if waits is not None:
            await waits

    def ecam(self, slot: int, offset: int) -> int:
        return _PLAN.ecam_base + (slot << 15) + offset

    def bar(self, slot: int) -> int:
        low, high = (self.services.number(self.ecam(slot, FIRST_BAR + offset)) for offset in (0, 4))
        return (low & ~15) | (high << 32 if low & 4 else 0)


async def _step(machine: _Machine, source: Source) -> None:
    services, slot = machine.services, source.one(_SLOTS)
    what, width = source.below(8), source.one((1, 2, 4, 8))
    if what == 0:
        services.answer(machine.ecam(slot, source.number(2) % 4096), min(width, 4))
    elif what == 1:
        width = min(width, 4)
        await machine.store(machine.ecam(slot, source.number(2) % 4096), source.number(width), width)
    elif what < 6:
        offset = source.one(_COMMON) if what < 5 else source.number(2) % (1 << 15)
        address = machine.bar(slot) + offset
        if what == 2:
            answer = services.answer(address, width)
            if not isinstance(answer, bytes):
                await answer
        else:
            await machine.store(address, source.number(width), width)
    elif what == 6:
        data = source.some(64)
        machine.write(source.number(3) % (_RAM - 64), data)
    else:
        how = source.below(8)
        if how < 4:
            await _turns(1 + how)
        elif how < 6:
            await _bring_up(machine, slot, source)
        else:
            await _request(machine, slot, source)
    machine.look(slot)


def _ring(slot: int, queue: int) -> int:
    return slot << 14 | queue << 12


async def _bring_up(machine: _Machine, slot: int, source: Source) -> None:
    """What a driver does first, with a choice of features."""
    await machine.store(machine.ecam(slot, COMMAND), COMMAND_MEM | COMMAND_MASTER, 2)
    at, mask = machine.bar(slot), source.number() and source.number(4)
    for status in (0, 1, 3):
        await machine.store(at + DEVICE_STATUS, status, 1)
    for half in range(2):
        await machine.store(at + DEVICE_FEATURE_SELECT, half, 4)
        await machine.store(at + DRIVER_FEATURE_SELECT, half, 4)
        await machine.store(at + DRIVER_FEATURE, machine.services.number(at + 4) & ~(mask if half == 0 else 0), 4)
    await machine.store(at + DEVICE_STATUS, 11, 1)
    for queue in range(min(len(machine.device(slot).queue_sizes), _QUEUES)):
        await machine.store(at + QUEUE_SELECT, queue, 2)
        await machine.store(at + QUEUE_SIZE, _SIZE, 2)
        for register, offset in ((QUEUE_DESC, 0), (QUEUE_DRIVER, _AVAILABLE), (QUEUE_DEVICE, _USED)):
            await machine.store(at + register, _ring(slot, queue) + offset, 8)
        await machine.store(at + QUEUE_ENABLE, 1, 2)
    await machine.store(at + DEVICE_STATUS, 15, 1)


async def _request(machine: _Machine, slot: int, source: Source) -> None:
    """A chain of up to four, whose data is the input's, and a kick."""
    queue, count = source.below(_QUEUES), 1 + source.below(4)
    at, readable = _ring(slot, queue), source.below(count + 1)
    number = int.from_bytes(machine.memory.read(at + _AVAILABLE + 2, 2), "little")
    head = 4 * number % _SIZE
    for i in range(count):
        size, data = source.one(_SIZES), at + _DATA + 256 * i
        flags = (i + 1 < count) | (i >= readable) << 1
        machine.write(at + 16 * (head + i), struct.pack("<QIHH", data, size, flags, head + i + 1))
        machine.write(data, source.take(min(size, source.number())) if i < readable else b"")
    machine.write(at + _AVAILABLE + 4 + 2 * (number % _SIZE), struct.pack("<H", head))
    machine.write(at + _AVAILABLE + 2, struct.pack("<H", (number + 1) & 0xFFFF))
    await machine.store(machine.bar(slot) + NOTIFY + NOTIFY_MULTIPLIER * queue, queue, 2)
    await _turns(2)


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


_loop = asyncio.new_event_loop()
_machine: _Machine | None = None


async def _go(machine: _Machine, source: Source) -> None:
    while source:
        await _step(machine, source)
    await _turns(4)
    await machine.renew()


def run(data: bytes) -> None:
    global _machine
    if _machine is None:
        _machine = _Machine()
        _loop.run_until_complete(_machine.open())
    errors = _machine.errors
    _loop.set_exception_handler(lambda _, said: errors.append(said.get("exception") or Unexpected(said)))
    _loop.run_until_complete(_go(_machine, Source(data)))
    found = list(errors)
    errors.clear()
    for error in found:
        if not isinstance(error, AiovmmError):
            raise error
