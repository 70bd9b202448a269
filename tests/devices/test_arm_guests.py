"""PL011, PL031 and PL061 under arm64 processors, with their lines at a true GIC: output, input, alarm and key by interrupts."""

from __future__ import annotations

import asyncio
import time

import pytest

from aiovmm.boot.aarch64.layout import GPIO, GPIO_SPI, RTC, RTC_SPI, UART, UART_SPI
from aiovmm.bus import Range, Space
from aiovmm.devices.pl011 import HANDED_OVER, Pl011Port
from aiovmm.devices.pl031 import Pl031Rtc
from aiovmm.devices.pl061 import Pl061Gpio
from aiovmm.kvm.aarch64.pins import SpiLine
from tests.devices import linux_pl011 as uart
from tests.devices import linux_pl031 as rtc
from tests.devices import linux_pl061 as gpio
from tests.guests.aarch64 import branch, load, move, store
from tests.guests.aarch64.interrupts import HANDLER, handles, takes
from tests.guests.aarch64.machine import DEVICE, ArmMachine

pytestmark = pytest.mark.kvmhost(arch="aarch64")

PRINTED = 2000


def add(register: int, value: int) -> int:
    """add x`register`, x`register`, #`value`."""
    return 0x91000000 | value << 10 | register << 5 | register


def take(register: int) -> int:
    """subs x`register`, x`register`, #1."""
    return 0xF1000400 | register << 5 | register


def unless_zero(words: int) -> int:
    """b.ne to so many instructions further on."""
    return 0x54000001 | (words & 0x7FFFF) << 5


def if_bit(register: int, bit: int, words: int) -> int:
    """tbnz x`register`, #`bit`, so many instructions further on."""
    return 0x37000000 | bit << 19 | (words & 0x3FFF) << 5 | register


async def test_a_pl011_prints_without_waiting_and_echoes_by_interrupts() -> None:
    """As Linux does both: UARTFR by 16 bits before each character."""
    prints = [
        *[*move(10, UART), *move(11, PRINTED), *move(12, 0)],
        *[
            load(2, 13, 10, uart.FR),
            if_bit(13, 5, -1),
            store(2, 12, 10, uart.DR),
            add(12, 1),
            take(11),
            unless_zero(-5),
        ],
        *[*move(13, uart.RXI | uart.RTI), store(2, 13, 10, uart.IMSC)],
        *[*move(10, DEVICE), store(4, 13, 10, 0)],
    ]
    echoes = [
        *move(5, UART),
        load(2, 6, 5, uart.FR),
        if_bit(6, 4, 4),
        load(2, 7, 5, uart.DR),
        store(2, 7, 5, uart.DR),
        branch(-4),
    ]
    async with ArmMachine(takes(UART_SPI, prints)) as m:
        m.memory.write(HANDLER, handles(echoes))
        output = bytearray()
        call_later = asyncio.get_running_loop().call_later
        line = SpiLine(m.vm, UART_SPI)
        port = Pl011Port(line, output.extend, call_later=call_later, state=HANDED_OVER)
        m.bus.add(Range(Space.MMIO, UART, port.SIZE, port, "serial", port.fast))
        m.start()
        await m.until(lambda: 0 in m.device.written)
        printed = bytes(i & 0xFF for i in range(PRINTED))
        assert bytes(output) == printed
        assert m.cpus[0].counters.sync == 2, "the mask and the mark"
        rest = bytearray(b"typed by a person, and more than there is room for in FIFOs of sixteen\n" * 3)
        expected = printed + rest

        def feed() -> None:
            while rest and (taken := port.receive(bytes(rest))):
                del rest[:taken]

        port.set_writable_callback(feed)
        feed()
        await m.until(lambda: len(output) >= len(expected))
        assert bytes(output) == expected
        assert not m.errors


async def test_an_alarm_of_a_pl031_interrupts_once_and_when_it_is_due() -> None:
    sets = [
        *move(10, RTC),
        load(4, 11, 10, rtc.DR),
        add(11, 2),
        store(4, 11, 10, rtc.MR),
        *move(12, 1),
        store(4, 12, 10, rtc.ICR),
        store(4, 12, 10, rtc.IMSC),
    ]
    notes = [
        *[*move(5, RTC), *move(6, DEVICE)],
        load(4, 7, 5, rtc.DR),
        store(4, 7, 6, 0),
        *[*move(7, 1), store(4, 7, 5, rtc.ICR)],
        load(4, 7, 5, rtc.MR),
        store(4, 7, 6, 4),
    ]
    async with ArmMachine(takes(RTC_SPI, sets)) as m:
        m.memory.write(HANDLER, handles(notes))
        clock = Pl031Rtc(SpiLine(m.vm, RTC_SPI), time.time, asyncio.get_running_loop().call_later)
        m.bus.add(Range(Space.MMIO, RTC, clock.SIZE, clock, "rtc", clock.fast))
        before = int(time.time())
        m.start()
        await m.until(lambda: 4 in m.device.written)
        at, alarm = m.device.written[0], m.device.written[4]
        assert alarm >= before + 2
        assert at >= alarm
        await m.cpus[0].pause()
        assert len(m.device.log) == 2, "the line is released"
        clock.close()


async def test_the_power_key_of_a_pl061_is_seen_down_and_up_each_time() -> None:
    """As Linux's gpio-keys does it, the wait before it looks apart."""
    power = 8
    listens = [
        *[*move(10, GPIO), *move(11, power)],
        store(1, 11, 10, gpio.IBE),
        store(1, 11, 10, gpio.IE),
        *[*move(10, DEVICE), store(4, 11, 10, 0)],
    ]
    looks = [
        *[*move(5, GPIO), *move(6, DEVICE), *move(7, power)],
        store(1, 7, 5, gpio.IC),
        load(1, 7, 5, power << 2),
        store(4, 7, 6, 4),
    ]
    async with ArmMachine(takes(GPIO_SPI, listens)) as m:
        m.memory.write(HANDLER, handles(looks))
        lines = Pl061Gpio(SpiLine(m.vm, GPIO_SPI), asyncio.get_running_loop().call_later)
        m.bus.add(Range(Space.MMIO, GPIO, lines.SIZE, lines, "power button", lines.fast))
        m.start()
        await m.until(lambda: 0 in m.device.written)

        def seen() -> list[int]:
            return [int.from_bytes(data, "little") for _, offset, data in m.device.log if offset == 4]

        for count in (1, 2):
            lines.press_power_button()
            await m.until(lambda count=count: len(seen()) >= 2 * count)  # type: ignore[misc]
            assert seen() == [power, 0] * count
        lines.close()
