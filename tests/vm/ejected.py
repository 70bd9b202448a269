"""A guest that lets go of something, and is reset in the same moment: by another of its processors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiovmm import VM, EventKind
from aiovmm.bus import Space
from aiovmm.machine.hotplug.one_by_one import OneByOne
from aiovmm.machine.hotplug.units import Units
from tests.vm.guest import event

__all__ = ["ejected_and_reset"]


async def ejected_and_reset(
    vm: VM, hotplug: type[OneByOne], eject: Callable[[], Awaitable[None]], patch: pytest.MonkeyPatch
) -> None:
    """`eject()` writes to the registers. What it lets go of is still on its way out when the machine is to be taken apart."""
    goes, waited_for, may_go = asyncio.Event(), asyncio.Event(), asyncio.Event()
    remove, settled = hotplug._remove, Units.settled

    async def remove_slowly(self: Any, machine: Any, unit: int) -> None:
        goes.set()
        await may_go.wait()
        await remove(self, machine, unit)

    async def wait(units: Units) -> None:
        waited_for.set()
        await settled(units)

    patch.setattr(hotplug, "_remove", remove_slowly)
    ejecting = asyncio.ensure_future(eject())
    await goes.wait()
    patch.setattr(Units, "settled", wait)
    vm.machine.bus.write(Space.PIO, 0x600, b"\x01")
    either = [asyncio.ensure_future(event(vm, EventKind.REBOOTED)), asyncio.ensure_future(waited_for.wait())]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    may_go.set()
    await ejecting
    await either[0]
    either[1].cancel()
