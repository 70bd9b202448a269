"""The access sequences of Linux's PL061 and gpio-keys drivers, by 8 bits each.

Source: drivers/gpio/gpio-pl061.c and drivers/input/keyboard/gpio_keys.c, 6.1.
Time is the test's: `work` is the delayed work of gpio-keys, 5 ms after the interrupt.
"""

from __future__ import annotations

from typing import Protocol

DIR, IS, IBE, IEV, IE, RIS, MIS, IC, AFSEL = range(0x400, 0x424, 4)


class Port(Protocol):
    def read(self, offset: int) -> int: ...
    def write(self, offset: int, value: int) -> None: ...


class GpioKeys:
    """A key on `line`. `events` are what the input layer reports: a value that it has already is none."""

    def __init__(self, port: Port, line: int) -> None:
        self.port, self.bit = port, 1 << line
        self.events: list[int] = []
        self.due = False

    def probe(self) -> None:
        """pl061_probe; then the key: an input, with both edges."""
        self.port.write(IE, 0)
        self.port.write(DIR, self.port.read(DIR) & ~self.bit)
        event, sense, both = self.port.read(IEV), self.port.read(IS), self.port.read(IBE)
        self.port.write(IS, sense & ~self.bit)
        self.port.write(IBE, both | self.bit)
        self.port.write(IEV, event)
        self.port.write(IE, self.port.read(IE) | self.bit)

    def open(self) -> None:
        """gpio_keys_report_state."""
        self._report()

    def interrupt(self) -> bool:
        """pl061_irq_handler, handle_edge_irq and gpio_keys_gpio_isr."""
        if not self.port.read(MIS) & self.bit:
            return False
        self.port.write(IC, self.bit)
        self.due = True
        return True

    def work(self) -> None:
        """gpio_keys_gpio_work_func."""
        if self.due:
            self.due = False
            self._report()

    def _report(self) -> None:
        value = int(bool(self.port.read(self.bit << 2)))
        if value != (self.events[-1] if self.events else 0):
            self.events.append(value)
