"""A guest that does anything to the registers of hotplug, and to those of small devices that are nowhere on PCI: by a true
processor, as fast as it can. Whoever adds, removes or resizes meanwhile has an answer, which is what then is so."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aiovmm import VM, CpusConfig, DiskConfig, EventKind, HotplugError, MemoryConfig, RebootPolicy
from aiovmm.bus import Range, Space
from aiovmm.devices.debug import DebugConsole, PostCode
from aiovmm.devices.hotplug.slots import SlotRegisters
from aiovmm.devices.hotplug.units import UnitRegisters
from aiovmm.devices.pvpanic import CRASH_LOADED, PANICKED, Pvpanic
from aiovmm.machine.architecture import board_of_host
from tests.guests.machine import Machine
from tests.hostile.test_guest import neighbour
from tests.limits import HANGS
from tests.pci.test_kvm import VcpuGuest
from tests.vm.guest import config, counts_on, until

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers"),
]

BASE, WIDTHS = 0x800, (1, 2, 4)
STOP = 0x60020  # see tests/guests/kernel.S
MIB = 1 << 20
RAM, MODULE = 4 * MIB, 128 * MIB


class Slots:
    """Two segments, of which slots are asked for."""

    def __init__(self) -> None:
        self.registers, self.ejected, self.asked = SlotRegisters(2), list[Any](), list[Any]()
        self.registers.on_eject = lambda segment, slot: self.ejected.append((segment, slot))

    def ask(self) -> None:
        for segment, slot in ((0, 3), (0, 31), (1, 0), (1, 17)):
            self.registers.ask(segment, slot)
            self.registers.added(segment, slot + 1 & 31)
            self.asked.append((segment, slot))


class Units:
    """Eight, of which some come and some go."""

    def __init__(self) -> None:
        self.registers, self.ejected, self.asked = UnitRegisters(8, 6), list[Any](), list[Any]()
        self.registers.on_eject = self.ejected.append
        self.registers.on_kept = self.ejected.append
        self.registers.on_taken = self.registers.on_refused = self.ejected.append
        self.registers.on_again = lambda unit: None

    def ask(self) -> None:
        for unit in (3, 5):
            self.registers.ask(unit)
            self.asked.append(unit)
        for unit in (6, 7):
            self.registers.insert(unit)
            self.asked.append(unit)


def written(guest: VcpuGuest, size: int) -> None:
    """All widths, at all places and a little beyond both ends, and what is read there."""
    rng = random.Random(size)
    for width in WIDTHS:
        for value in (0, (1 << 8 * width) - 1, rng.getrandbits(8 * width)):
            for offset in range(-width, size + width):
                guest.write(BASE + offset, value.to_bytes(width, "little"), Space.PIO)
                assert len(guest.read(BASE + offset, width, Space.PIO)) == width


async def on_a_processor(device: Any, fast: Any, size: int, before: Callable[[], None], rounds: int = 3) -> None:
    async with Machine("agent") as machine:
        machine.bus.add(Range(Space.PIO, BASE, size, device, "hostile", fast))
        machine.start()
        guest = VcpuGuest(machine.memory)
        for _ in range(rounds):
            before()
            await asyncio.to_thread(written, guest, size)
        assert machine.errors == []


@pytest.mark.parametrize("block", [Slots, Units])
async def test_whatever_is_written_what_is_asked_for_has_one_answer_and_nothing_else_any(block: type[Any]) -> None:
    async with neighbour() as longest:
        tested = block()
        await on_a_processor(tested.registers, tested.registers.fast, tested.registers.fast.size, tested.ask)
    assert sorted(tested.ejected) == sorted(tested.asked)
    assert longest[0] < HANGS


async def test_whatever_is_written_small_devices_tell_as_much_as_they_should() -> None:
    panics: list[int] = []
    await on_a_processor(Pvpanic(panics.append), None, 1, lambda: None)
    assert sorted(panics) == [PANICKED, CRASH_LOADED]
    text = bytearray()
    debug = DebugConsole(text.extend)
    await on_a_processor(debug, debug.fast, 1, lambda: None)
    assert len(text) == 9  # what is wider than the port is nobody's
    codes: list[int] = []
    post = PostCode(codes.append)
    await on_a_processor(post, post.fast, 1, lambda: None)
    assert all(before != after for before, after in itertools.pairwise(codes))


# -- a whole machine


def hammering(**changes: Any) -> Any:
    """A guest that does anything until it is told to stop, and then what it should."""
    memory = MemoryConfig(RAM, hotplug_size=2 * MODULE)
    return replace(config("XP", **changes), cpus=CpusConfig(1, 4), memory=memory)


async def some(rng: random.Random, vm: VM, image: Path) -> None:
    """Something that a user asks for, which ends."""
    what = rng.randrange(4)
    ids = [disk.id for disk in vm.config.disks]
    try:
        async with asyncio.timeout(HANGS):
            if what == 0 and len(ids) < 4:
                await vm.add(DiskConfig(path=image, readonly=True), timeout=rng.choice((0, 0.05, 1)))
            elif what == 1 and ids:
                await vm.remove(str(rng.choice(ids)), timeout=0.05, force=rng.random() < 0.5)
            elif what == 2:
                await vm.resize(cpus=rng.randint(1, 4), timeout=0.1)
            else:
                await vm.resize(memory=RAM + rng.randint(0, 2) * MODULE, timeout=0.1)
    except HotplugError:  # which HotplugTimeout is
        pass


def is_consistent(vm: VM) -> None:
    machine = vm.machine
    assert len(machine.vcpus) == vm.config.cpus.boot
    more = sum(region.size for region in machine.memory.regions if region.gpa >= 4 << 30)
    assert more == vm.config.memory.hotplugged_size
    assert [disk.id for disk in vm.config.disks] == [plugged.id for plugged in machine.parts.plugged]


@pytest.mark.parametrize("seed", [1, 2, pytest.param(3, marks=pytest.mark.thorough)])
async def test_a_guest_that_hammers_on_all_of_them_has_what_its_user_says(tmp_path: Path, seed: int) -> None:
    image, rng = tmp_path / "disk", random.Random(seed)
    image.write_bytes(bytes(MIB))
    async with neighbour() as longest, VM(hammering(on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await counts_on(vm)
        for _ in range(40):
            await some(rng, vm, image)
        await counts_on(vm, 1000)
        vm.machine.memory.write(STOP, b"\1")
        await until(lambda: not any(machine_is_leaving(vm)))
        is_consistent(vm)
        for disk in list(vm.config.disks):
            await vm.remove(str(disk.id), timeout=HANGS)
        assert await vm.add(DiskConfig(path=image, readonly=True), timeout=HANGS)
        is_consistent(vm)
    assert longest[0] < HANGS
    assert [told.detail async for told in vm.events(from_start=True) if told.kind is EventKind.DEVICE_ERROR] == []


def machine_is_leaving(vm: VM) -> list[object]:
    """What the guest has let go of and is not away yet."""
    return [task for task in asyncio.all_tasks() if "eject " in task.get_name()]
