"""The I/O APIC: 82093AA registers and pins (pure), and its shell on the bus."""

from aiovmm.devices.ioapic.device import IoApic, MsiSink, PinLine
from aiovmm.devices.ioapic.intx import IntxLine, IntxPins, pin_of_slot
from aiovmm.devices.ioapic.registers import PINS, Inject, IoApicRegisters, IoApicState, Route

__all__ = [
    "PINS",
    "Inject",
    "IntxLine",
    "IntxPins",
    "IoApic",
    "IoApicRegisters",
    "IoApicState",
    "MsiSink",
    "PinLine",
    "Route",
    "pin_of_slot",
]
