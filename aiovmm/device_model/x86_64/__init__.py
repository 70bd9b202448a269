"""The devices of a PC that are not on PCI."""

from __future__ import annotations

from aiovmm.device_model.row import DeviceRow, no_such
from aiovmm.device_model.serial import serial_port

__all__ = ["board_rows"]


def board_rows() -> tuple[DeviceRow, ...]:
    """All of them."""
    return (
        serial_port("one 16550A at 0x3f8, IRQ 4 while OUT2 is set"),
        DeviceRow(
            "RTC/CMOS",
            True,
            "on",
            "none: always on",
            back_ends="the host's clock",
            limits="alarm and update interrupts, IRQ 8; no daylight saving (DSE reads as 0)",
        ),
        DeviceRow(
            "I/O APIC",
            True,
            "on",
            "none: always on",
            limits="24 pins, version 0x11; local APICs are KVM's (split irqchip)",
        ),
        DeviceRow(
            "i8042 shutdown/reboot",
            True,
            "on beside ACPI",
            "none: always on",
            limits="a keyboard controller without keyboard that answers its self test; command 0xfe resets",
        ),
        no_such("PL061", "the power button is ACPI's"),
        DeviceRow(
            "Debug console",
            True,
            "off",
            "--debug-console off|tty|pty|socket=PATH|file=PATH|null,iobase=",
            back_ends="as the serial port",
            limits="a port that is written to, 0xe9; with -v numbers that are written to port 0x80 are in the log",
        ),
        DeviceRow(
            "ACPI shutdown/reboot",
            True,
            "on",
            "none: always on",
            limits="hardware-reduced: reset and sleep at port 0x600, PM timer at 0x608, power button by GED",
        ),
    )
