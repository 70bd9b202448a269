"""The access sequences of Linux's PL031 driver (drivers/rtc/rtc-pl031.c, 6.1): 32 bits each."""

from __future__ import annotations

from typing import Protocol

DR, MR, LR, CR, IMSC, RIS, MIS, ICR = range(0, 0x20, 4)


class Port(Protocol):
    def read(self, offset: int) -> int: ...
    def write(self, offset: int, value: int) -> None: ...


class Driver:
    """rtc-pl031 with its interrupt."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.alarms = 0
        port.write(CR, port.read(CR) | 1)

    def read_time(self) -> int:
        return self.port.read(DR)

    def set_time(self, seconds: int) -> None:
        self.port.write(LR, seconds)

    def set_alarm(self, seconds: int) -> None:
        self.port.write(MR, seconds)
        self.alarm_irq_enable(True)

    def alarm_irq_enable(self, enabled: bool) -> None:
        self.port.write(ICR, 1)
        self.port.write(IMSC, self.port.read(IMSC) & ~1 | enabled)

    def interrupt(self) -> bool:
        """Whether it was for this clock."""
        if not self.port.read(MIS) & 1:
            return False
        self.port.write(ICR, 1)
        self.alarms += 1
        return True
