"""What a guest sees of the ACPI registers: shutdown, reset, timer, events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.devices.acpi import PM_TIMER_HZ, AcpiControl, Ged, GedEvent, PmCounter, PmTimer
from aiovmm.irq import RecordingLine


class Ends:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.port = AcpiControl(self.log.append, lambda: self.log.append("off"))


class TestControl:
    def test_reset_register(self) -> None:
        ends = Ends()
        ends.port.write(0, b"\x01")
        assert ends.log == ["ACPI reset register"]

    def test_linux_powers_off(self) -> None:
        """acpi_hw_extended_sleep: clear WAK_STS, then SLP_TYP 5 with SLP_EN."""
        ends = Ends()
        ends.port.write(0, b"\x80")
        assert ends.log == []
        ends.port.write(0, b"\x34")
        assert ends.log == ["off"]

    @pytest.mark.parametrize("value", [0x00, 0x02, 0x14, 0x20, 0x24, 0x30, 0x38, 0x80, 0xFE])
    def test_anything_else_does_nothing(self, value: int) -> None:
        ends = Ends()
        ends.port.write(0, bytes([value]))
        assert ends.log == []

    def test_status_reads_as_zero(self) -> None:
        assert Ends().port.read(0, 1) == b"\x00"


class TestPmTimer:
    def test_frequency(self) -> None:
        now = 5_000_000_000
        timer = PmTimer(lambda: now)
        assert timer.read(0, 4) == bytes(4)
        now += 1_000_000_000
        assert int.from_bytes(timer.read(0, 4), "little") == 3_579_545
        assert timer.read(1, 2) == timer.read(0, 4)[1:3]
        timer.write(0, b"\xff\xff\xff\xff")
        assert int.from_bytes(timer.read(0, 4), "little") == 3_579_545

    @pytest.mark.parametrize("bits", [24, 32])
    def test_it_wraps(self, bits: int) -> None:
        counter = PmCounter(bits)
        before = ((1 << bits) * 1_000_000_000 - 1) // PM_TIMER_HZ
        assert counter.value(before) == (1 << bits) - 1
        assert counter.value(before + 1) == 0

    @given(st.integers(0, 2**32 - 1), st.integers(0, 2**62))
    def test_it_goes_on_after_a_restore(self, value: int, now: int) -> None:
        timer = PmTimer(lambda: now)
        timer.restore(value)
        assert timer.snapshot() == value


class TestGed:
    def test_power_button(self) -> None:
        line = RecordingLine()
        ged = Ged(line)
        ged.press_power_button()
        ged.press_power_button()
        assert line.level
        assert line.pulses == 1
        assert ged.read(0, 1) == b"\x08"
        assert not line.level
        assert ged.read(0, 1) == b"\x00"

    def test_events_come_together(self) -> None:
        ged = Ged(RecordingLine())
        ged.notify(GedEvent.CPU)
        ged.notify(GedEvent.MEMORY)
        ged.notify(GedEvent.PCI)
        ged.write(0, b"\xff")
        assert ged.read(0, 4) == b"\x07\x00\x00\x00"

    def test_snapshot(self) -> None:
        ged = Ged(RecordingLine())
        ged.press_power_button()
        other = Ged(RecordingLine())
        other.restore(ged.snapshot())
        assert other.read(0, 1) == b"\x08"
