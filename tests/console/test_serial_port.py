"""The console on the device it is made for: what a guest's driver does at the port, a program sees as streams."""

from __future__ import annotations

import asyncio

from aiovmm.console import Console
from aiovmm.console.input import HIGH_WATER
from aiovmm.devices.serial import SerialPort
from aiovmm.irq import RecordingLine
from tests.limits import HANGS

DATA, FIFO_CONTROL, LINE_STATUS = 0, 2, 5


def booted() -> tuple[Console, SerialPort]:
    console = Console(name="serial")
    port = SerialPort(RecordingLine(), console.feed)
    console.connect(port)
    port.write(FIFO_CONTROL, b"\x01")
    return console, port


def read_all(port: SerialPort) -> bytes:
    """What a driver's interrupt handler does: read while data is ready."""
    data = b""
    while port.read(LINE_STATUS, 1)[0] & 1:
        data += port.read(DATA, 1)
    return data


async def test_what_the_guest_prints_is_expected() -> None:
    console, port = booted()
    port.write_many(DATA, b"Debian GNU/Linux 12\r\n\r\nlogin: ")
    port.end_of_batch()
    assert (await console.expect(rb"Linux (\d+)", timeout=HANGS))[1] == b"12"
    await console.expect(rb"login: $", timeout=HANGS)


async def test_what_is_sent_arrives_whole_and_in_order() -> None:
    console, port = booted()
    data = bytes(range(256)) * 320
    sending = asyncio.create_task(console.send(data))
    received = b""
    while len(received) < len(data):
        await asyncio.sleep(0)
        received += read_all(port)
        assert console.input_waiting <= HIGH_WATER
    await sending
    assert received == data


async def test_a_guest_that_does_not_read_still_prints() -> None:
    console, port = booted()
    sending = asyncio.create_task(console.send(bytes(1 << 20)))
    await asyncio.sleep(0)
    port.write_many(DATA, b"alive\n")
    port.end_of_batch()
    assert await console.readline() == b"alive\n"
    assert not sending.done()
    sending.cancel()
