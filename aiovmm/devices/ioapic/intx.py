"""Pins of the I/O APIC for the interrupt pins of PCI functions. Pure.

Pins 16 to 23 have no other use on a PC, and systems take what is wired there for PCI's: level-triggered, shared, active low
(PCI Local Bus 3.0, 2.2.6; polarity has no meaning here). Each slot has its own, the same in each segment, so that firmware can
tell of slots that are empty; every eighth shares it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

__all__ = ["FIRST_INTX_PIN", "INTX_PINS", "IntxLine", "IntxPins", "LevelPins", "pin_of_slot"]

FIRST_INTX_PIN, INTX_PINS = 16, 8


def pin_of_slot(slot: int) -> int:
    """The pin of INTA of what is in a slot of any segment."""
    return FIRST_INTX_PIN + (slot - 1) % INTX_PINS


class LevelPins(Protocol):
    """See IoApic."""

    def set_level(self, pin: int, asserted: bool) -> None:
        """Assert or release a pin."""

    def on_end(self, pin: int, callback: Callable[[], None] | None) -> None:
        """Call `callback` at each end of an interrupt of `pin`, before its level is looked at again; None: nobody any more."""


class IntxLine:
    """One function's wire to a pin: an irq.LevelLine. Made by `IntxPins.line`."""

    def __init__(self, pins: IntxPins, index: int, ended: Callable[[], None]) -> None:
        self.asserted = False
        self.ended = ended
        self._pins = pins
        self._index = index

    @property
    def gsi(self) -> int:
        """The global system interrupt: pin numbers are that on a machine with one I/O APIC."""
        return FIRST_INTX_PIN + self._index

    def set_level(self, asserted: bool) -> None:
        """Assert or release the wire; the pin is asserted while any of its wires is. Idempotent."""
        self.asserted = asserted
        self._pins.update(self._index)

    def circuit(self) -> None:
        """None: KVM asserts no pin of an I/O APIC that is in this process."""

    def close(self) -> None:
        """Release it and take it off the pin. Idempotent."""
        self.set_level(False)
        self.ended = _nobody
        self._pins.remove(self._index, self)


def _nobody() -> None:
    """Is told of an end."""


class IntxPins:
    """All of them, on one I/O APIC."""

    def __init__(self, pins: LevelPins) -> None:
        self._pins = pins
        self._lines: dict[int, list[IntxLine]] = {}  # of pins that have any

    def line(self, ended: Callable[[], None], slot: int) -> IntxLine:
        """A wire from what is in `slot` to its pin. `ended()` is called when the guest has ended its interrupt, if the wire was
        asserted; it has been released by then, as a source is that waits to be asked anew."""
        index = pin_of_slot(slot) - FIRST_INTX_PIN
        if index not in self._lines:
            self._lines[index] = []
            self._pins.on_end(FIRST_INTX_PIN + index, partial(self._ended, index))
        line = IntxLine(self, index, ended)
        self._lines[index].append(line)
        return line

    def update(self, index: int) -> None:
        """A wire of this pin has changed."""
        self._pins.set_level(FIRST_INTX_PIN + index, any(line.asserted for line in self._lines.get(index, ())))

    def remove(self, index: int, line: IntxLine) -> None:
        """Forget a wire; nothing if it is not there."""
        lines = self._lines.get(index, [])
        if line in lines:
            lines.remove(line)
            if not lines:
                del self._lines[index]
                self._pins.on_end(FIRST_INTX_PIN + index, None)

    def _ended(self, index: int) -> None:
        """All who have asserted the pin are asked, for nobody knows whose interrupt it was."""
        asserted = [line for line in self._lines.get(index, ()) if line.asserted]
        for line in asserted:
            line.set_level(False)
        for line in asserted:
            line.ended()
