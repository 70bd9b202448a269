"""One write may let go of several slots or units: one that fails costs the others nothing, and is told of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from aiovmm.devices.hotplug.slots import SlotRegisters
from aiovmm.devices.hotplug.units import UnitFlag, UnitRegisters

FAILS_AT_ONCE, FAILS_LATER = 2, 3
NUMBERS = (1, FAILS_AT_ONCE, FAILS_LATER, 5)


class Ejecting:
    """Two of four fail."""

    def __init__(self) -> None:
        self.away: list[int] = []

    def eject(self, number: int) -> Awaitable[None] | None:
        if number == FAILS_AT_ONCE:
            raise ValueError("at once")
        return asyncio.ensure_future(self._eject(number))

    async def _eject(self, number: int) -> None:
        await asyncio.sleep(0)
        if number == FAILS_LATER:
            raise KeyError("later")
        self.away.append(number)


async def test_a_slot_that_fails_costs_the_others_nothing() -> None:
    ejecting, left = Ejecting(), []
    registers = SlotRegisters(1)
    registers.on_eject = lambda _segment, slot: ejecting.eject(slot)

    def on_left(_segment: int, slot: int) -> None:
        left.append(slot)
        if slot == 7:
            raise OSError("it was told of first")

    registers.on_left = on_left
    for slot in NUMBERS:
        registers.ask(0, slot)
    for slot in (7, 8):
        registers.gone(0, slot)
    pending = registers.write(0, b"\xff" * 4)
    assert pending is not None
    with pytest.raises(KeyError, match="later") as failed:
        await pending
    assert (ejecting.away, left) == ([1, 5], [7, 8])
    others = failed.value.__context__
    assert isinstance(others, ValueError)
    assert isinstance(others.__context__, OSError)
    assert registers.write(0, b"\xff" * 4) is None


async def test_a_unit_that_fails_costs_the_others_nothing() -> None:
    ejecting = Ejecting()
    registers = UnitRegisters(8, 8)
    registers.on_eject = ejecting.eject
    for unit in NUMBERS:
        registers.ask(unit)
    pending = registers.write(0, bytes([UnitFlag.EJECT]) * 8)
    assert pending is not None
    with pytest.raises(KeyError, match="later") as failed:
        await pending
    assert isinstance(failed.value.__context__, ValueError)
    assert ejecting.away == [1, 5]
    assert registers.present == 4


def test_one_that_fails_where_nothing_is_waited_for_is_told_of() -> None:
    registers, asked = SlotRegisters(1), []

    def eject(_segment: int, slot: int) -> None:
        asked.append(slot)
        raise RuntimeError(f"slot {slot}")

    registers.on_eject = eject
    registers.ask(0, 4)
    registers.ask(0, 9)
    with pytest.raises(RuntimeError, match="slot 9") as failed:
        registers.write(0, b"\xff" * 4)
    assert str(failed.value.__context__) == "slot 4"
    assert asked == [4, 9]
