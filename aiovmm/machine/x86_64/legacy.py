"""The devices of a PC that are not on PCI, on the bus of one machine."""

from __future__ import annotations

import asyncio
import logging
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
from aiovmm.errors import ConfigError
from aiovmm.lifecycle import ExitReason
from aiovmm.machine.parts import MachineParts
from aiovmm.runtime.plain import Fields, Saved, State

__all__ = ["COM1", "GED_PIN", "SERIAL_PIN", "LegacyDevices"]

COM1, POST_PORT, PCI_PORTS = 0x3F8, 0x80, range(0xCF8, 0xD00)
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
        self.pm_timer = self._timer(ports)
        self.keyboard = I8042(reset, self.ioapic.line(KEYBOARD_PIN))
        self._add(Space.PIO, 0x60, self.keyboard, "i8042", self.keyboard.fast)
        self.rtc = self._clock(ram, reset)
        self._console = parts.serial
        self.serial = self._serial_port(parts)
        if parts.debug_output is not None:
            self._debug_console(parts.config.debug_console.iobase, parts.debug_output)
        if logging.getLogger("aiovmm").isEnabledFor(logging.INFO):
            self._post_codes(parts.config.name)

    def save(self) -> State:
        """Of all, the I/O APIC last: what the others have held back is given first. The vCPUs' state comes after it."""
        state = {name: device.save() for name, device in self._saved}
        return {**state, "ioapic": self.ioapic.save()}

    async def load(self, state: State) -> None:
        """The I/O APIC first. No timer runs yet, see `unsuspend`. Raises SnapshotError, also if there were others."""
        fields = Fields(state, "devices that are not on PCI")
        states = {name: fields.state(name) for name in ("ioapic", *(name for name, _ in self._saved))}
        fields.end()
        if (routes := self.ioapic.load(states["ioapic"])) is not None:
            await routes
        for name, device in self._saved:
            device.load(states[name])

    def unsuspend(self) -> None:
        """After `load`, when the vCPUs can take interrupts: timers run."""
        self.rtc.unsuspend()
        if self.serial is not None:
            self.serial.unsuspend()

    @property
    def _saved(self) -> list[tuple[str, Saved]]:
        """All but the I/O APIC."""
        named: list[tuple[str, Saved | None]] = [
            ("ged", self.ged),
            ("pm_timer", self.pm_timer),
            ("i8042", self.keyboard),
            ("rtc", self.rtc),
            ("serial", self.serial),
        ]
        return [(name, device) for name, device in named if device is not None]

    def close(self) -> None:
        """Forget timers, and take the console off the port. Idempotent."""
        self.rtc.close()
        self.ioapic.close()
        if self.serial is not None:
            self._console.connect(None)  # what is typed in a reset waits for the next guest
            self.serial.close()

    def _timer(self, ports: AcpiPorts) -> PmTimer | None:
        if ports.pm_timer is None:
            return None
        timer = PmTimer(time.monotonic_ns)
        self._add(Space.PIO, ports.pm_timer, timer, "pm timer")
        return timer

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

    def _debug_console(self, port: int, output: Callable[[bytes], None]) -> None:
        from aiovmm.devices.debug import DebugConsole

        device = DebugConsole(output)
        other = self._bus.find(Space.PIO, port)
        taken = other.name if other is not None else "PCI host bridge" if port in PCI_PORTS else ""
        if taken:
            raise ConfigError("debug_console.iobase", f"port {port:#x} is the {taken}'s", "0xe9 is usual")
        self._add(Space.PIO, port, device, "debug console", device.fast)

    def _post_codes(self, name: str) -> None:
        """For who reads the log. Kernels also write there to pass time, so that a guest without readers had better not leave."""
        from aiovmm.devices.debug import PostCode, range_of
        from aiovmm.runtime.log import Log
        from aiovmm.runtime.quota import Quota

        log, quota = Log(vm=name), Quota()

        def tell(code: int) -> None:
            if quota.take(time.monotonic()) is not None:
                log.info("debug port", code=f"{code:#04x}", range=range_of(code))

        if self._bus.find(Space.PIO, POST_PORT) is None:
            device = PostCode(tell)
            self._add(Space.PIO, POST_PORT, device, "debug port", device.fast)

    def _add(self, space: Space, base: int, device: Sized, name: str, fast: FastPage | None = None) -> None:
        self._bus.add(Range(space, base, device.SIZE, device, name, fast))
