"""The registers of processors or memory modules for hotplug, a port each, as the DSDT reads and writes them. Pure.

    read     PRESENT, LOOK (it has come: device check), LET_GO (it is wanted: eject request)
    written  LOOK, LET_GO: the guest has been told. EJECT: it has let go (_EJ0). TAKEN, REFUSED, KEPT: what became of what it
             was told (_OST): it has taken it, it does not take it, it does not let it go

What is read is answered from the shadow, without an exit. A guest has a say only in what it is asked for, once: everything else
that it writes is nothing, and its vCPUs drop it. One that lets go of what it was asked for, and is to keep by now, is told that
it has come again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from aiovmm.bus import FastPage, Policy
from aiovmm.errors import SnapshotError
from aiovmm.runtime.plain import Fields, State

__all__ = ["UnitFlag", "UnitRegisters"]

_NOTHING, _COMING, _GOING, _STAYING, _AGAIN = range(5)


class UnitFlag:
    """Bits of a unit's register."""

    PRESENT = 0x01
    LOOK = 0x02
    LET_GO = 0x04
    EJECT = 0x08
    TAKEN = 0x10
    REFUSED = 0x20
    KEPT = 0x40


_ANSWERS = {_STAYING: UnitFlag.KEPT, _AGAIN: UnitFlag.TAKEN | UnitFlag.REFUSED}
"""With which nothing is asked any more, of a unit that is there whatever the guest says."""


class UnitRegisters:
    """A BusDevice for `count` units, the first `present` of which are there. `on_taken`, `on_refused`, `on_kept` and `on_eject`
    are told the unit; the guest's write waits for the result of the last. `on_again`: the guest is to look at it once more."""

    def __init__(self, count: int, present: int) -> None:
        self.on_taken: Callable[[int], None] = _nobody
        self.on_refused: Callable[[int], None] = _nobody
        self.on_kept: Callable[[int], None] = _nobody
        self.on_eject: Callable[[int], Awaitable[None] | None] = _nobody
        self.on_again: Callable[[int], None] = _nobody
        self._asked = bytearray(count)
        self.fast = FastPage(count)
        self.fast.policy[:] = bytes([Policy.SHADOW_READ | Policy.IGNORE_WRITE]) * count
        self.fast.shadow[:present] = bytes([UnitFlag.PRESENT]) * present

    # -- the machine's side

    @property
    def present(self) -> int:
        """How many are there."""
        return sum(value & UnitFlag.PRESENT for value in self.fast.shadow)

    def insert(self, unit: int) -> None:
        """It is there, and the guest is to take it."""
        self._set(unit, UnitFlag.PRESENT | UnitFlag.LOOK, _COMING)

    def withdraw(self, unit: int) -> None:
        """It is not there, whatever the guest was told."""
        self._set(unit, 0, _NOTHING)

    def ask(self, unit: int) -> None:
        """The guest is to let go of it. Once more reminds it."""
        self._set(unit, UnitFlag.PRESENT | UnitFlag.LET_GO, _GOING)

    def keep(self, unit: int) -> None:
        """It is not to go any more, if it was. Idempotent."""
        if self._asked[unit] == _GOING:
            self._set(unit, UnitFlag.PRESENT, _STAYING)

    # -- the guest's side

    def read(self, offset: int, size: int) -> bytes:
        """What the shadow says."""
        return bytes(self.fast.shadow[offset : offset + size])

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """A byte for each unit. The result is done when what was ejected is away; then it raises what failed of that."""
        from aiovmm.devices.hotplug.each import each  # once something is asked

        return each([partial(self._written, offset + at, value) for at, value in enumerate(data)])

    def _written(self, unit: int, value: int) -> Awaitable[None] | None:
        asked = self._asked[unit]
        told = value & (UnitFlag.LOOK | UnitFlag.LET_GO)
        self.fast.shadow[unit] &= ~told
        if asked == _COMING and value & (UnitFlag.TAKEN | UnitFlag.REFUSED):
            if value & UnitFlag.TAKEN:
                self._set(unit, UnitFlag.PRESENT, _NOTHING)
                self.on_taken(unit)
            else:
                self._set(unit, 0, _NOTHING)
                self.on_refused(unit)
        elif asked == _GOING and value & UnitFlag.EJECT:
            self._set(unit, 0, _NOTHING)
            return self.on_eject(unit)
        elif asked == _GOING and value & UnitFlag.KEPT:
            self._set(unit, UnitFlag.PRESENT, _NOTHING)
            self.on_kept(unit)
        elif asked == _STAYING and value & UnitFlag.EJECT:
            self._set(unit, UnitFlag.PRESENT | UnitFlag.LOOK, _AGAIN)
            self.on_again(unit)
        elif value & _ANSWERS.get(asked, 0):
            self._set(unit, UnitFlag.PRESENT, _NOTHING)
        return None

    def _set(self, unit: int, value: int, asked: int) -> None:
        self.fast.shadow[unit], self._asked[unit] = value, asked
        self.fast.policy[unit] = Policy.SHADOW_READ | (0 if asked else Policy.IGNORE_WRITE)

    # -- state

    def save(self) -> State:
        """Which are there. What is asked of the guest is asked here, so one that it was to take is not there."""
        there = zip(self.fast.shadow, self._asked, strict=True)
        return {"present": bytes(value & UnitFlag.PRESENT if asked != _COMING else 0 for value, asked in there)}

    def load(self, state: State) -> None:
        """See runtime.plain.Saved."""
        fields = Fields(state, "units")
        present = fields.data("present", len(self._asked))
        fields.end()
        if present.strip(bytes([0, UnitFlag.PRESENT])):
            raise SnapshotError("units: no registers have such values")
        for unit, value in enumerate(present):
            self._set(unit, value, _NOTHING)


def _nobody(_unit: int) -> None:
    """Nobody has asked for anything."""
