"""The part of a guest's kernel under hotplug, on the bus of a machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from aiovmm import VM
from aiovmm.bus import Space
from tests.vm.guest import until

SLOTS, GED = 0x800, 0x604
LONG = 60.0  # seconds that nothing takes


def read(vm: VM, port: int, size: int) -> int:
    data = vm.machine.bus.read(Space.PIO, port, size)
    assert isinstance(data, bytes)
    return int.from_bytes(data, "little")


def vendor(vm: VM, slot: int, segment: int = 0) -> int:
    data = vm.machine.pci.root.segments[segment].read_config(slot, 0, 2)
    assert isinstance(data, bytes)
    return int.from_bytes(data, "little")


async def notified(vm: VM) -> None:
    """Wait for the GED's event, and take it as _EVT does."""
    await until(lambda: bool(read(vm, GED, 1) & 4), LONG)


async def look(vm: VM, segment: int = 0) -> list[int]:
    """What a kernel does that was notified: slots with something new are enumerated."""
    await notified(vm)
    new = read(vm, SLOTS + 8 * segment, 4)
    slots = [slot for slot in range(32) if new >> slot & 1]
    for slot in slots:  # and its BARs are sized
        buses = vm.machine.pci.root.segments[segment]
        old = buses.read_config(slot, 0x10, 4)
        assert isinstance(old, bytes)
        for value in (b"\xff" * 4, old):
            buses.write_config(slot, 0x10, value)
    return slots


async def let_go(vm: VM, segment: int = 0) -> list[int]:
    """Slots that are wanted are ejected."""
    await notified(vm)
    wanted = read(vm, SLOTS + 8 * segment + 4, 4)
    await eject(vm, wanted, segment)
    return [slot for slot in range(32) if wanted >> slot & 1]


async def eject(vm: VM, mask: int, segment: int = 0) -> None:
    pending: Awaitable[None] | None = vm.machine.bus.write(Space.PIO, SLOTS + 8 * segment, mask.to_bytes(4, "little"))
    if pending is not None:
        await asyncio.wait_for(pending, LONG)
