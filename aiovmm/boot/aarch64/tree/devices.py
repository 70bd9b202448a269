"""The devices that are not on PCI, in the device tree: serial port, clock, the lines that the power button is on, and what says
which machine this is. Pure.

Sources: serial/pl011.yaml, rtc/arm,pl031.yaml, gpio/pl061-gpio.yaml, input/gpio-keys.yaml, arm/primecell.yaml,
rng/microsoft,vmgenid.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator

from aiovmm.boot.aarch64 import layout
from aiovmm.boot.aarch64.hardware import Hardware, PrimeCell
from aiovmm.boot.aarch64.tree.handles import GPIO, PCLK, spi, spi_edge
from aiovmm.boot.fdt import EMPTY, Node, cells, quads, strings

__all__ = ["POWER_LINE", "device_nodes", "uart_path"]

POWER_LINE = 3
"""The PL061's line that the power button is on."""
_PCLK_HZ = 24_000_000
_ACTIVE_HIGH = 0
_KEY_POWER = 116  # linux/input-event-codes.h


def uart_path(uart: PrimeCell) -> str:
    """Its node's path."""
    return f"/serial@{uart.base:x}"


def device_nodes(hardware: Hardware) -> Iterator[Node]:
    """All that there are, with the clock that they need."""
    clock = {"compatible": strings("fixed-clock"), "#clock-cells": cells(0), "clock-frequency": cells(_PCLK_HZ)}
    yield Node("apb-pclk", {**clock, "clock-output-names": strings("clk24mhz"), "phandle": cells(PCLK)})
    if hardware.uart is not None:
        yield _primecell("serial", "arm,pl011", hardware.uart, ("uartclk", "apb_pclk"))
    if hardware.rtc is not None:
        yield _primecell("rtc", "arm,pl031", hardware.rtc)
    if hardware.gpio is not None:
        lines = {
            "gpio-controller": EMPTY,
            "#gpio-cells": cells(2),
            "interrupt-controller": EMPTY,
            "#interrupt-cells": cells(2),
            "#address-cells": cells(0),
            "phandle": cells(GPIO),
        }
        yield _primecell("gpio", "arm,pl061", hardware.gpio, more=lines)
        yield _power_button()
    if hardware.generation:
        place = {
            "reg": quads(layout.GENERATION, layout.DEVICE_SIZE),
            "interrupts": spi_edge(layout.GENERATION_SPI),
        }
        yield Node(f"rng@{layout.GENERATION:x}", {"compatible": strings("microsoft,vmgenid"), **place})


def _primecell(
    name: str,
    compatible: str,
    device: PrimeCell,
    clocks: tuple[str, ...] = ("apb_pclk",),
    more: dict[str, bytes] | None = None,
) -> Node:
    properties = {
        "compatible": strings(compatible, "arm,primecell"),
        "arm,primecell-periphid": cells(device.peripheral_id),
        "reg": quads(device.base, layout.DEVICE_SIZE),
        "interrupts": spi(device.spi),
        "clocks": cells(*(PCLK for _ in clocks)),
        "clock-names": strings(*clocks),
    }
    return Node(f"{name}@{device.base:x}", properties | (more or {}))


def _power_button() -> Node:
    button = {
        "label": strings("Power button"),
        "linux,code": cells(_KEY_POWER),
        "gpios": cells(GPIO, POWER_LINE, _ACTIVE_HIGH),
    }
    return Node("gpio-keys", {"compatible": strings("gpio-keys")}, (Node("key-power", button),))
