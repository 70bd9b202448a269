"""What a guest sees of the CMOS clock at ports 0x70 and 0x71."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.devices.rtc import CmosClock, Rtc
from aiovmm.irq import RecordingLine
from tests.devices.exitloop import Vcpu

A, B, C, D, CENTURY = 0x0A, 0x0B, 0x0C, 0x0D, 0x32
SET, UIE, AIE, PIE, BINARY, H24 = 0x80, 0x10, 0x20, 0x40, 0x04, 0x02
START = datetime(2026, 11, 22, 19, 5, 7, tzinfo=UTC).timestamp()  # a Sunday


@dataclass
class Timer:
    due: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Rig:
    """A clock whose time the test turns, and a guest."""

    def __init__(self, **memory: int) -> None:
        self.now = START
        self.line = RecordingLine()
        self.resets: list[str] = []
        self.timers: list[Timer] = []
        self.rtc = Rtc(lambda: self.now, self.resets.append, irq=self.line, call_later=self.call_later, **memory)
        self.guest = Vcpu(self.rtc)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay, callback))
        return self.timers[-1]

    def step(self, seconds: float) -> None:
        """Somebody sets the host's clock; timers go by another, and are due as long from now as before."""
        self.now += seconds
        for timer in self.timers:
            timer.due += seconds

    def advance(self, seconds: float) -> None:
        """Turn the time, running timers as they come due."""
        end = self.now + seconds
        while due := [t for t in self.timers if not t.cancelled and t.due <= end]:
            timer = min(due, key=lambda t: t.due)
            self.timers.remove(timer)
            self.now = max(self.now, timer.due)
            timer.callback()
        self.now = end

    def read(self, index: int) -> int:
        self.guest.write(0, index)
        return self.guest.read(1)

    def write(self, index: int, value: int) -> None:
        self.guest.write(0, index)
        self.guest.write(1, value)

    def time(self) -> list[int]:
        """Century, year, month, day, hour, minute, second."""
        return [self.read(i) for i in (CENTURY, 9, 8, 7, 4, 2, 0)]

    def set_time(self, *values: int) -> None:
        """As Linux's mc146818_set_time does: century, year, month, day, hour, minute, second."""
        control = self.read(B)
        self.write(B, control | SET)
        divider = self.read(A)
        self.write(A, divider | 0x70)
        for index, value in zip((CENTURY, 9, 8, 7, 4, 2, 0), values, strict=True):
            self.write(index, value)
        self.write(B, control)
        self.write(A, divider)


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestTime:
    def test_bcd_24_hours(self, rig: Rig) -> None:
        assert rig.time() == [0x20, 0x26, 0x11, 0x22, 0x19, 0x05, 0x07]
        assert rig.read(6) == 1

    def test_binary_and_12_hours_as_register_b_says(self, rig: Rig) -> None:
        rig.write(B, BINARY)
        assert rig.time() == [20, 26, 11, 22, 0x80 | 7, 5, 7]
        rig.write(B, 0)
        assert rig.read(4) == 0x87
        rig.write(B, H24 | BINARY)
        assert rig.read(4) == 19

    def test_the_weekday_is_the_guests_own_count(self, rig: Rig) -> None:
        rig.write(6, 5)  # it says that this Sunday is a Thursday
        assert (rig.read(6), rig.read(7)) == (5, 0x22)
        rig.now += 86400
        assert (rig.read(6), rig.read(7)) == (6, 0x23)
        rig.now += 2 * 86400
        assert (rig.read(6), rig.read(7)) == (1, 0x25)
        rig.set_time(0x20, 0x26, 0x12, 0x24, 0x10, 0, 0)
        assert rig.read(6) == 1, "setting the date leaves it"
        state = rig.rtc.snapshot()
        other = Rig()
        other.now = rig.now
        other.rtc.restore(state)
        assert other.read(6) == 1

    @pytest.mark.parametrize("weekday", [0, 8, 0xFF])
    def test_what_is_no_weekday_counts_as_the_right_one(self, rig: Rig, weekday: int) -> None:
        rig.write(6, weekday)
        assert rig.read(6) == 1

    def test_daylight_saving_cannot_be_turned_on(self, rig: Rig) -> None:
        rig.write(B, H24 | 0x01)
        assert rig.read(B) == H24

    @pytest.mark.parametrize(("hour", "shown"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)])
    def test_noon_and_midnight_in_12_hours(self, rig: Rig, hour: int, shown: int) -> None:
        rig.now = datetime(2026, 1, 1, hour, tzinfo=UTC).timestamp()
        rig.write(B, 0)
        assert rig.read(4) == shown
        rig.write(4, shown)
        rig.write(B, H24)
        assert rig.read(4) == hour // 10 << 4 | hour % 10

    def test_it_goes_on(self, rig: Rig) -> None:
        rig.advance(86400 * 40 + 3)
        assert rig.time() == [0x20, 0x27, 0x01, 0x01, 0x19, 0x05, 0x10]

    def test_linux_sets_it_and_the_host_clock_stays(self, rig: Rig) -> None:
        rig.set_time(0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58)
        assert rig.time() == [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58]
        rig.advance(0.49)
        assert rig.read(0) == 0x58
        rig.advance(0.02)  # the first update comes half a second after the divider is released
        assert rig.read(0) == 0x59
        rig.advance(1.0)
        assert rig.time() == [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]

    def test_set_halts_it_and_keeps_what_is_written(self, rig: Rig) -> None:
        rig.write(B, SET | H24)
        rig.advance(10)
        assert rig.read(0) == 0x07
        rig.write(0, 0x7A)
        assert rig.read(0) == 0x7A
        rig.write(0, 0x30)
        rig.write(B, H24)
        assert rig.read(0) == 0x30

    def test_a_field_written_while_it_runs_takes_effect(self, rig: Rig) -> None:
        rig.write(2, 0x30)
        rig.advance(1)
        assert rig.time()[-3:] == [0x19, 0x30, 0x08]

    @given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.floats(0, 1e9)), max_size=30))
    @settings(deadline=None)
    def test_nothing_a_guest_writes_raises(self, writes: list[tuple[int, int, float]]) -> None:
        rig = Rig()
        rig.timers.clear()
        for index, value, later in writes:
            rig.now += later
            rig.write(index, value)
            assert all(0 <= rig.read(i) <= 0xFF for i in range(0x40))
            state = rig.rtc.snapshot()
            rig.rtc.restore(state)
            assert rig.rtc.snapshot() == state


class TestUpdateInProgress:
    def test_it_stands_for_244_microseconds_before_the_second_changes(self, rig: Rig) -> None:
        rig.now = START + 0.9997
        assert not rig.read(A) & 0x80
        rig.now = START + 0.9998
        assert rig.read(A) & 0x80
        assert rig.read(0) == 0x07
        rig.now = START + 1.0
        assert not rig.read(A) & 0x80
        assert rig.read(0) == 0x08

    def test_not_while_halted(self, rig: Rig) -> None:
        rig.write(B, SET | H24)
        rig.now = START + 0.9999
        assert not rig.read(A) & 0x80

    def test_linux_finds_that_it_works(self, rig: Rig) -> None:
        """mc146818_does_rtc_work: UIP must be seen clear within 10 polls, and bit 6 of D be 0."""
        rig.now = START + 0.9999
        polls = 0
        while rig.read(A) & 0x80:
            rig.advance(0.001)
            polls += 1
        assert polls <= 1
        assert rig.read(D) == 0x80


class TestInterrupts:
    def test_update_ended(self, rig: Rig) -> None:
        rig.now = START + 0.25
        rig.read(C)
        rig.write(B, H24 | UIE)
        rig.advance(0.7)
        assert rig.line.pulses == 0
        rig.advance(0.1)
        assert rig.line.pulses == 1
        rig.advance(5)
        assert rig.line.pulses == 1  # not acknowledged
        assert rig.read(C) == 0xD0  # the periodic flag comes with it, enabled or not
        assert rig.read(C) == 0
        rig.advance(1)
        assert rig.line.pulses == 2

    def test_alarm(self, rig: Rig) -> None:
        rig.write(5, 0x19)
        rig.write(3, 0x06)
        rig.write(1, 0x00)
        rig.read(C)
        rig.write(B, H24 | AIE)
        rig.advance(52.9)
        assert rig.line.pulses == 0
        rig.advance(0.2)
        assert rig.line.pulses == 1
        assert rig.read(C) & 0xA0 == 0xA0
        rig.advance(86399)
        assert rig.line.pulses == 1
        rig.advance(1)
        assert rig.line.pulses == 2

    def test_alarm_every_minute(self, rig: Rig) -> None:
        rig.write(5, 0xFF)
        rig.write(3, 0xC0)
        rig.write(1, 0x30)
        rig.write(B, H24 | AIE)
        for minute in range(3):
            rig.advance(60)
            assert rig.line.pulses == minute + 1
            rig.read(C)

    @pytest.mark.parametrize("back", [0.4, 7200.0, 50 * 366 * 86400.0])
    def test_interrupts_go_on_when_the_hosts_clock_is_set_back(self, rig: Rig, back: float) -> None:
        """UIE is bit 4 of register B."""
        rig.read(C)
        rig.write(B, H24 | 0x10)
        rig.advance(3)
        assert rig.line.pulses == 1
        assert rig.read(C) & 0x90 == 0x90
        rig.step(-back)
        for second in range(2, 5):
            rig.advance(2)
            assert rig.line.pulses == second
            assert rig.read(C) & 0x90 == 0x90

    def test_an_alarm_comes_soon_when_the_hosts_clock_is_set_past_it(self, rig: Rig) -> None:
        rig.write(5, 0x19)
        rig.write(3, 0x06)
        rig.write(1, 0x00)
        rig.advance(-rig.now % 86400 + 19 * 3600 + 360)  # to a 19:06, whose alarm is for the one after it
        rig.read(C)
        rig.write(B, H24 | AIE)
        rig.step(86400)
        rig.advance(11)
        assert rig.line.pulses == 1

    def test_an_alarm_that_cannot_be_never_comes(self, rig: Rig) -> None:
        rig.write(3, 0x75)
        rig.write(B, H24 | AIE)
        assert [t for t in rig.timers if not t.cancelled] == []

    def test_periodic(self, rig: Rig) -> None:
        rig.read(C)
        rig.write(A, 0x2F)  # 2 Hz
        rig.write(B, H24 | PIE)
        for n in range(1, 5):
            rig.advance(0.5)
            assert rig.line.pulses == n
            assert rig.read(C) & 0xC0 == 0xC0

    def test_set_turns_update_ended_off(self, rig: Rig) -> None:
        rig.write(B, H24 | UIE | SET)
        assert rig.read(B) == H24 | SET

    def test_close_forgets_the_timer(self, rig: Rig) -> None:
        rig.write(B, H24 | UIE)
        rig.rtc.close()
        rig.advance(10)
        assert rig.line.pulses == 0


class TestMemory:
    def test_sizes(self) -> None:
        rig = Rig(memory_below_4g=3 << 30, memory_above_4g=2 << 30)
        assert rig.read(0x34) | rig.read(0x35) << 8 == (3 << 30) - (16 << 20) >> 16
        assert rig.read(0x5B) | rig.read(0x5C) << 8 | rig.read(0x5D) << 16 == (2 << 30) >> 16

    def test_a_small_machine_has_none_above_16_mib(self) -> None:
        rig = Rig(memory_below_4g=8 << 20)
        assert rig.read(0x34) | rig.read(0x35) << 8 == 0

    def test_memory_keeps_what_is_written(self, rig: Rig) -> None:
        rig.write(0x40, 0x5A)
        assert rig.read(0x40) == 0x5A
        assert rig.read(0xC0) == 0x5A  # bit 7 of the index is the NMI mask

    def test_status_registers_are_read_only(self, rig: Rig) -> None:
        rig.write(C, 0xFF)
        rig.write(D, 0)
        assert rig.read(D) == 0x80
        assert rig.read(C) & 0x0F == 0


class TestReset:
    def test_shutdown_status_with_nmi_off(self, rig: Rig) -> None:
        rig.write(0x8F, 0)
        assert rig.resets == ["CMOS shutdown status"]

    def test_linux_clears_the_warm_reset_code_and_lives(self, rig: Rig) -> None:
        rig.write(0x0F, 0x0A)
        rig.write(0x0F, 0)
        assert rig.resets == []


def test_the_index_costs_no_wait(rig: Rig) -> None:
    rig.read(D)
    assert (rig.guest.exits.posted, rig.guest.exits.sync) == (1, 1)
    assert rig.guest.read(0) == 0xFF
    assert rig.guest.exits.sync == 1


def test_both_ports_in_one_access(rig: Rig) -> None:
    rig.guest.write(0, 0x5A40, size=2)
    assert rig.guest.read(0, size=2) == 0x5AFF


def test_a_snapshot_keeps_the_guests_own_time(rig: Rig) -> None:
    rig.set_time(0x20, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06)
    other = Rig()
    other.now = rig.now + 60
    other.rtc.restore(rig.rtc.snapshot())
    assert other.time() == [0x20, 0x01, 0x02, 0x03, 0x04, 0x06, 0x06]


def test_a_foreign_snapshot_is_refused() -> None:
    clock = CmosClock(START)
    state = clock.snapshot()
    with pytest.raises(ValueError, match="127 bytes"):
        clock.restore(type(state)(ram=bytes(127)))
