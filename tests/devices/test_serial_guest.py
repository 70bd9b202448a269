"""The serial port under a real vCPU: posted output, shadowed status and input as the native run loop serves them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiovmm.bus import Range, Space
from aiovmm.devices.serial import SerialPort
from aiovmm.errors import KvmError
from aiovmm.irq import RecordingLine
from aiovmm.kvm import Kvm
from tests.guests.machine import Machine

pytestmark = pytest.mark.kvm


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    """The machine's KVM."""
    try:
        opened = Kvm.open()
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")
    yield opened
    opened.close()


class Port:
    """A port on a machine's bus, with what came out of it."""

    def __init__(self, machine: Machine) -> None:
        self.output = bytearray()
        self.line = RecordingLine()
        self.port = SerialPort(self.line, self.output.extend)
        machine.bus.add(Range(Space.PIO, 0x3F8, SerialPort.SIZE, self.port, "serial", self.port.fast))


async def test_loopback_scratch_and_echo(kvm: Kvm) -> None:
    async with Machine("uart", kvm=kvm) as m:
        serial = Port(m)
        m.start()
        await m.until(lambda: len(m.written) >= 4)
        assert m.written == b"\x61x\x60\x5a"
        offered = bytes(i % 100 for i in range(1000)) + b"q"
        rest = bytearray(offered)

        def feed() -> None:
            while rest and (taken := serial.port.receive(bytes(rest))):
                del rest[:taken]

        serial.port.set_writable_callback(feed)
        feed()
        await m.until(lambda: m.written.endswith(b"E"))
        assert bytes(serial.output) == offered
        assert not m.errors


async def test_output_waits_for_nobody(kvm: Kvm) -> None:
    async with Machine("uartburst", kvm=kvm) as m:
        serial = Port(m)
        m.start()
        await m.until(lambda: m.written == b"E")
        assert bytes(serial.output) == bytes(range(256)) * 128
        assert serial.line.pulses > 1
        assert not m.errors
        assert m.cpu.counters.sync < 10
