"""The devices of the machine that are not on PCI, on its bus: serial port, clock, and the lines that the power button is on."""

from __future__ import annotations

import asyncio
import time

from aiovmm.boot.aarch64.hardware import GPIO, RTC, UART, PrimeCell
from aiovmm.bus import Bus, BusDevice, FastPage, Range, Space
from aiovmm.config import ConsoleMode
from aiovmm.devices import primecell
from aiovmm.devices.pl011 import HANDED_OVER, Pl011Port
from aiovmm.devices.pl031 import Pl031Rtc
from aiovmm.devices.pl061 import Pl061Gpio
from aiovmm.kvm.aarch64.pins import SpiLine
from aiovmm.kvm.vmfd import VmFd
from aiovmm.machine.parts import MachineParts
from aiovmm.runtime.plain import Fields, State

__all__ = ["PlatformDevices"]


class PlatformDevices:
    """All of them. `uart` is where the serial port is, for the device tree; None: there is none."""

    def __init__(self, bus: Bus, vm: VmFd, parts: MachineParts) -> None:
        call_later = asyncio.get_running_loop().call_later
        self._bus = bus
        self._vm = vm
        self._console = parts.serial
        self.clock = Pl031Rtc(self._line(RTC), time.time, call_later)
        self._add(RTC, self.clock, "rtc", self.clock.fast)
        self.gpio = Pl061Gpio(self._line(GPIO), call_later)
        self._add(GPIO, self.gpio, "power button", self.gpio.fast)
        self.serial = self._serial_port(parts)
        self.uart: PrimeCell | None = UART if self.serial is not None else None

    def press_power_button(self) -> None:
        """Tell the guest that somebody wants it to power off."""
        self.gpio.press_power_button()

    def save(self) -> State:
        """Of all. The interrupt controller's and the vCPUs' state comes after it."""
        return {name: device.save() for name, device in self._saved}

    async def load(self, state: State) -> None:
        """No timer runs yet, see `unsuspend`. Raises SnapshotError, also if there were others."""
        fields = Fields(state, "devices that are not on PCI")
        states = {name: fields.state(name) for name, _ in self._saved}
        fields.end()
        for name, device in self._saved:
            device.load(states[name])

    def unsuspend(self) -> None:
        """After `load`, when the vCPUs can take interrupts: timers run."""
        for _, device in self._saved:
            device.unsuspend()

    @property
    def _saved(self) -> list[tuple[str, Pl031Rtc | Pl061Gpio | Pl011Port]]:
        serial = [] if self.serial is None else [("serial", self.serial)]
        return [("rtc", self.clock), ("gpio", self.gpio), *serial]

    def close(self) -> None:
        """Forget timers, and take the console off the port. Idempotent."""
        self.clock.close()
        self.gpio.close()
        if self.serial is not None:
            self._console.connect(None)  # what is typed in a reset waits for the next guest
            self.serial.close()

    def _serial_port(self, parts: MachineParts) -> Pl011Port | None:
        if parts.config.serial.mode is ConsoleMode.OFF:
            return None
        call_later = asyncio.get_running_loop().call_later
        port = Pl011Port(self._line(UART), parts.serial_output, call_later=call_later, state=HANDED_OVER)
        self._add(UART, port, "serial", port.fast)
        parts.serial.connect(port)
        return port

    def _line(self, cell: PrimeCell) -> SpiLine:
        return SpiLine(self._vm, cell.spi)

    def _add(self, cell: PrimeCell, device: BusDevice, name: str, fast: FastPage) -> None:
        self._bus.add(Range(Space.MMIO, cell.base, primecell.SIZE, device, name, fast))
