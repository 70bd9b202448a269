"""The devices of an arm64 machine that are not on PCI: where they are, to what they are wired, and what the tree says of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aiovmm.boot.aarch64 import layout
from aiovmm.boot.aarch64.hardware import GPIO, RTC, UART, PrimeCell
from aiovmm.bus import Bus, Range, Space
from aiovmm.config import ConsoleConfig, ConsoleMode, PayloadConfig, VMConfig
from aiovmm.console import Console
from aiovmm.devices import primecell
from aiovmm.irq import RecordingLine
from aiovmm.machine.aarch64 import platform
from aiovmm.machine.aarch64.platform import PlatformDevices
from aiovmm.machine.parts import MachineParts
from tests.devices import linux_pl011 as uart
from tests.devices import linux_pl031 as rtc
from tests.devices.exitloop import FastDevice, Vcpu
from tests.devices.linux_pl061 import GpioKeys

NOW = 1_700_000_000.5


class Board:
    """The devices on a bus, with recorded lines, and a guest in front of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mode: ConsoleMode = ConsoleMode.NULL) -> None:
        self.lines: dict[int, RecordingLine] = {}
        monkeypatch.setattr(platform, "time", SimpleNamespace(time=lambda: NOW))
        monkeypatch.setattr(platform, "SpiLine", lambda _vm, spi: self.lines.setdefault(spi, RecordingLine()))
        config = VMConfig(PayloadConfig(Path("kernel")), serial=ConsoleConfig(mode))
        self.output = bytearray()
        self.console = Console()
        nothing = cast(Any, None)
        parts = MachineParts(config, nothing, self.console, Console(), self.output.extend, lambda _: None)
        self.bus = Bus()
        self.devices = PlatformDevices(self.bus, nothing, parts)

    def range(self, cell: PrimeCell) -> Range:
        found = self.bus.find(Space.MMIO, cell.base, layout.DEVICE_SIZE)
        assert found is not None
        return found

    def guest(self, cell: PrimeCell, width: int) -> Vcpu:
        return Vcpu(cast(FastDevice, self.range(cell).device), width)


@pytest.fixture
async def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(monkeypatch)


@pytest.mark.parametrize("cell", [UART, RTC, GPIO], ids=["uart", "rtc", "gpio"])
async def test_each_is_where_the_tree_has_it_and_is_what_it_says(board: Board, cell: PrimeCell) -> None:
    found = board.range(cell)
    assert (found.base, found.size) == (cell.base, layout.DEVICE_SIZE)
    fast = found.fast
    assert fast is not None
    ids = [fast.shadow[primecell.IDENTITY + 4 * number] for number in range(4)]
    assert int.from_bytes(bytes(ids), "little") == cell.peripheral_id
    assert cell.spi in board.lines


async def test_the_serial_port_is_the_console_and_is_on_when_the_kernel_comes(board: Board) -> None:
    guest = board.guest(UART, 2)
    uart.early_console(guest, b"early\n")
    guest.drain()
    assert board.output == b"early\n"
    board.console.write(b"typed ahead\n")
    uart.probe(guest)
    tty = uart.Tty(guest)
    tty.startup()
    while board.lines[UART.spi].level:
        assert tty.interrupt()
    assert tty.received == b"typed ahead\n"


async def test_without_a_console_there_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(monkeypatch, ConsoleMode.OFF)
    assert board.devices.uart is None
    assert board.bus.find(Space.MMIO, UART.base) is None
    assert RTC.spi in board.lines
    board.devices.close()


async def test_the_clock_is_the_hosts_and_its_alarm_is_wired(board: Board) -> None:
    driver = rtc.Driver(board.guest(RTC, 4))
    assert driver.read_time() == int(NOW)
    driver.alarm_irq_enable(True)
    assert not board.lines[RTC.spi].level
    driver.port.write(rtc.MR, int(NOW))
    assert board.lines[RTC.spi].level


async def test_the_power_button_is_a_key_that_linux_hears_of(board: Board) -> None:
    keys = GpioKeys(board.guest(GPIO, 1), 3)
    keys.probe()
    keys.open()
    for count in (1, 2):
        board.devices.press_power_button()
        for _ in range(2):
            assert board.lines[GPIO.spi].level
            assert keys.interrupt()
            keys.work()
        assert keys.events == [1, 0] * count
    assert not board.lines[GPIO.spi].level


async def test_after_close_nothing_is_left_that_would_wake(board: Board) -> None:
    guest = board.guest(UART, 2)
    board.devices.press_power_button()
    board.devices.close()
    board.devices.close()
    board.console.write(b"for the next guest\n")
    assert guest.read(uart.FR) & uart.RXFE
    assert board.console.input_waiting == len(b"for the next guest\n")
