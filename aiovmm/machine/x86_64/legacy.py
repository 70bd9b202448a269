"""The devices of a PC that are not on PCI, on the bus of one machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from aiovmm.boot.x86_64 import layout
from aiovmm.boot.x86_64.acpi import AcpiPorts
from aiovmm.bus import Bus, BusDevice, FastPage, Range, Space
from aiovmm.config import ConsoleMode
from aiovmm.devices.acpi import AcpiControl, Ged, PmTimer
from aiovmm.devices.i8042 import I8042
from aiovmm.devices.ioapic import IoApic, MsiSink
from aiovmm.devices.rtc import Rtc
from aiovmm.devices.serial import SerialPort
from aiovmm.lifecycle import ExitReason
from aiovmm.machine.parts import MachineParts

__all__ = ["COM1", "GED_PIN", "SERIAL_PIN", "LegacyDevices"]

COM1 = 0x3F8
KEYBOARD_PIN, SERIAL_PIN, GED_PIN, RTC_PIN = 1, 4, 5, 8


class Sized(BusDevice, Protocol):
    """A device that knows how many addresses it has."""

    SIZE: ClassVar[int]


class LegacyDevices:
    """All of them. `end(reason, detail)` is called when the guest resets or powers off through one."""

    def __init__(
        self,
        bus: Bus,
        sink: MsiSink,
        parts: MachineParts,
        ram: Sequence[tuple[int, int]],
        ports: AcpiPorts,
        end: Callable[[ExitReason, str], None],
    ) -> None:
        def reset(what: str) -> None:
            end(ExitReason.REBOOT, f"reset by the {what}")

        self._bus = bus
        self.ioapic = IoApic(sink)
        self._add(Space.MMIO, layout.IOAPIC, self.ioapic, "ioapic", self.ioapic.fast)
        self.ged = Ged(self.ioapic.line(GED_PIN))
        self._add(Space.PIO, ports.ged, self.ged, "ged")
        control = AcpiControl(reset, lambda: end(ExitReason.SHUTDOWN, "powered off by ACPI"))
        self._add(Space.PIO, ports.sleep_reset, control, "acpi control")
        if ports.pm_timer is not None:
            self._add(Space.PIO, ports.pm_timer, PmTimer(time.monotonic_ns), "pm timer")
        keyboard = I8042(reset, self.ioapic.line(KEYBOARD_PIN))
        self._add(Space.PIO, 0x60, keyboard, "i8042", keyboard.fast)
        self.rtc = self._clock(ram, reset)
        self._console = parts.serial
        self.serial = self._serial_port(parts)

    def close(self) -> None:
        """Forget timers, and take the console off the port. Idempotent."""
        self.rtc.close()
        if self.serial is not None:
            self._console.connect(None)  # what is typed in a reset waits for the next guest
            self.serial.close()

    def _clock(self, ram: Sequence[tuple[int, int]], reset: Callable[[str], None]) -> Rtc:
        above = sum(size for gpa, size in ram if gpa >= layout.RAM_ABOVE_4G)
        rtc = Rtc(
            time.time,
            reset,
            memory_below_4g=sum(size for _, size in ram) - above,
            memory_above_4g=above,
            irq=self.ioapic.line(RTC_PIN),
            call_later=asyncio.get_running_loop().call_later,
        )
        self._add(Space.PIO, 0x70, rtc, "rtc", rtc.fast)
        return rtc

    def _serial_port(self, parts: MachineParts) -> SerialPort | None:
        if parts.config.serial.mode is ConsoleMode.OFF:
            return None
        call_later = asyncio.get_running_loop().call_later
        port = SerialPort(self.ioapic.line(SERIAL_PIN), parts.serial_output, call_later=call_later)
        self._add(Space.PIO, COM1, port, "serial", port.fast)
        parts.serial.connect(port)
        return port

    def _add(self, space: Space, base: int, device: Sized, name: str, fast: FastPage | None = None) -> None:
        self._bus.add(Range(space, base, device.SIZE, device, name, fast))
