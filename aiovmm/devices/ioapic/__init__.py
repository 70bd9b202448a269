"""The I/O APIC: 82093AA registers and pins (pure), and its shell on the bus."""

from aiovmm.devices.ioapic.device import IoApic, MsiSink, PinLine
from aiovmm.devices.ioapic.registers import PINS, Inject, IoApicRegisters, IoApicState, Route

__all__ = ["PINS", "Inject", "IoApic", "IoApicRegisters", "IoApicState", "MsiSink", "PinLine", "Route"]
