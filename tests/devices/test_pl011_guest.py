"""The PL011 under a real vCPU: posted output by 16 bits, shadowed status and input as the native run loop serves them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiovmm.bus import Range, Space
from aiovmm.devices.pl011 import HANDED_OVER, Pl011Port
from aiovmm.errors import KvmError
from aiovmm.irq import RecordingLine
from aiovmm.kvm import Kvm
from tests.guests.machine import MMIO, Machine

pytestmark = pytest.mark.kvm

UART, RESULTS = MMIO + 0x10000, 0x60000
PRINTED = bytes(i & 0xFF for i in range(16 * 1024))


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    """The machine's KVM."""
    try:
        opened = Kvm.open()
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")
    yield opened
    opened.close()


async def test_it_prints_without_waiting_and_echoes_what_comes(kvm: Kvm) -> None:
    async with Machine("pl011", kvm=kvm) as m:
        output = bytearray()
        port = Pl011Port(RecordingLine(), output.extend, state=HANDED_OVER)
        m.bus.add(Range(Space.MMIO, UART, port.SIZE, port, "serial", port.fast))
        runs: list[int] = []
        write_many = port.write_many

        def noted(offset: int, data: bytes, size: int = 1) -> None:
            runs.append(size)
            write_many(offset, data, size)

        port.write_many = noted  # type: ignore[method-assign]
        m.start()
        await m.until(lambda: m.written == b"B")
        assert bytes(output) == PRINTED
        assert m.cpu.counters.sync == 1, "the mark"
        assert set(runs) == {2}, "in runs of what the guest wrote by 16 bits"
        assert m.memory.read(RESULTS, 8) == bytes([0x11, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1])
        rest = bytearray(bytes(i % 100 for i in range(300)) + b"q")  # each byte waits for the loop, twice
        expected = PRINTED + bytes(rest)

        def feed() -> None:
            while rest and (taken := port.receive(bytes(rest))):
                del rest[:taken]

        port.set_writable_callback(feed)
        feed()
        await m.until(lambda: m.written == b"BE")
        assert bytes(output) == expected
        assert not m.errors
