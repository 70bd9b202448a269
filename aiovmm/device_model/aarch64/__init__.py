"""The devices of an arm64 machine that are not on PCI."""

from __future__ import annotations

from aiovmm.boot.aarch64 import layout
from aiovmm.device_model.row import DeviceRow, no_such
from aiovmm.device_model.serial import serial_port
from aiovmm.devices.pl061 import POWER_KEY

__all__ = ["board_rows"]


def board_rows() -> tuple[DeviceRow, ...]:
    """All of them."""
    return (
        serial_port(f"one PL011 at {_place(layout.UART, layout.UART_SPI)} (ttyAMA0), with FIFOs of 16 bytes"),
        DeviceRow(
            "RTC/CMOS",
            True,
            "on",
            "none: always on",
            back_ends="the host's clock",
            limits=f"a PL031 at {_place(layout.RTC, layout.RTC_SPI)}: seconds of 32 bits, with alarm; no memory",
        ),
        no_such("I/O APIC", "the GICv3 and its ITS, which are KVM's"),
        no_such("i8042 shutdown/reboot", "PSCI, which KVM answers"),
        DeviceRow(
            "PL061",
            True,
            "on",
            "none: always on",
            limits=f"at {_place(layout.GPIO, layout.GPIO_SPI)}: line {POWER_KEY} is the power button, which the guest's "
            "driver gpio-keys looks at (in Debian's linux-image-arm64, and not in its cloud kernel); the others are low",
        ),
        no_such("Debug console", "earlycon= on the serial port"),
        no_such("ACPI shutdown/reboot", "PSCI, which KVM answers, and the PL061's power button, in a device tree"),
    )


def _place(base: int, spi: int) -> str:
    return f"{base:#010x}, interrupt {layout.SPI_BASE + spi}"
