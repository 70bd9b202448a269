"""What a guest sees of a PL031: the manual's tables, Linux's driver, and alarms at their time."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiovmm.devices.pl031 import Pl031, Pl031Rtc, Pl031State
from aiovmm.irq import RecordingLine
from tests.devices.exitloop import Vcpu
from tests.devices.linux_pl031 import CR, DR, ICR, IMSC, LR, MIS, MR, RIS, Driver

NOW = 1_700_000_000.25
WRAP = 1 << 32


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Rig:
    """A clock with a host whose time passes when the test says so. Its clock can be set; what its timers go by cannot."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now
        self.uptime = 0.0
        self.line = RecordingLine()
        self.timers: list[tuple[float, int, Timer, Callable[[], None]]] = []
        self.rtc = Pl031Rtc(self.line, lambda: self.now, self.call_later)
        self.guest = Vcpu(self.rtc, width=4)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        assert delay > 0, "no timer spins"
        timer = Timer()
        heapq.heappush(self.timers, (self.uptime + delay, id(timer), timer, callback))
        return timer

    def sleep(self, seconds: float) -> None:
        """Time passes, and timers come when they are due."""
        end = self.uptime + seconds
        while self.timers and self.timers[0][0] <= end:
            at, _, timer, callback = heapq.heappop(self.timers)
            if not timer.cancelled:
                self._pass_to(max(self.uptime, at))
                callback()
        self._pass_to(end)

    def _pass_to(self, uptime: float) -> None:
        self.now += uptime - self.uptime
        self.uptime = uptime


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestManual:
    """DDI 0224, table 3-1."""

    @pytest.mark.parametrize(
        ("offset", "reset"), [(DR, int(NOW)), (MR, 0), (LR, 0), (CR, 1), (IMSC, 0), (RIS, 0), (MIS, 0), (ICR, 0)]
    )
    def test_what_a_kernel_finds(self, rig: Rig, offset: int, reset: int) -> None:
        assert rig.guest.read(offset) == reset

    def test_it_is_a_pl031(self, rig: Rig) -> None:
        values = [rig.guest.read(offset) for offset in range(0xFE0, 0x1000, 4)]
        assert values == [0x31, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1]
        assert rig.guest.exits.sync == 0

    def test_what_is_reserved_reads_as_zero_and_cannot_be_written(self, rig: Rig) -> None:
        for offset in range(0x20, 0xFE0, 4):
            rig.guest.write(offset, 0xFFFFFFFF)
            assert rig.guest.read(offset) == 0

    @pytest.mark.parametrize("offset", [DR, RIS, MIS])
    def test_status_cannot_be_written(self, rig: Rig, offset: int) -> None:
        before = rig.guest.read(offset)
        rig.guest.write(offset, 0xFFFFFFFF)
        assert rig.guest.read(offset) == before

    def test_it_cannot_be_stopped(self, rig: Rig) -> None:
        rig.guest.write(CR, 0)
        assert rig.guest.read(CR) == 1
        rig.sleep(5)
        assert rig.guest.read(DR) == int(NOW) + 5

    def test_registers_of_32_bits_by_halves(self, rig: Rig) -> None:
        rig.guest.write(MR, 0x5678, 2)
        rig.guest.write(MR + 2, 0x1234, 2)
        assert rig.guest.read(MR) == 0x12345678
        assert rig.guest.read(MR + 2, 2) == 0x1234

    def test_the_mask_is_one_bit(self, rig: Rig) -> None:
        rig.guest.write(IMSC, 0xFFFFFFFF)
        assert rig.guest.read(IMSC) == 1

    @pytest.mark.parametrize("masked", [True, False])
    def test_the_interrupt_is_a_level(self, rig: Rig, masked: bool) -> None:
        rig.guest.write(MR, int(NOW) + 3)
        rig.guest.write(IMSC, not masked)
        rig.sleep(2.5)
        assert (rig.guest.read(RIS), rig.line.level) == (0, False)
        rig.sleep(0.5)
        assert (rig.guest.read(RIS), rig.guest.read(MIS), rig.line.level) == (1, not masked, not masked)
        rig.guest.write(IMSC, 1)
        assert rig.line.level
        rig.guest.write(ICR, 0)
        assert rig.line.level
        rig.guest.write(ICR, 1)
        assert (rig.guest.read(RIS), rig.line.level) == (0, False)
        rig.sleep(0.4)
        assert not rig.line.level, "it is not raised again in the same second"


class TestLinux:
    def test_it_reads_and_sets_the_time_and_not_the_hosts(self, rig: Rig) -> None:
        driver = Driver(rig.guest)
        assert driver.read_time() == int(NOW)
        driver.set_time(1000)
        rig.sleep(2)
        assert driver.read_time() == 1002
        assert rig.guest.read(LR) == 1000
        assert Driver(Rig().guest).read_time() == int(NOW)

    def test_an_alarm_interrupts_at_its_second(self, rig: Rig) -> None:
        driver = Driver(rig.guest)
        driver.set_time(5000)
        driver.set_alarm(5060)
        rig.sleep(59.7)
        assert not rig.line.level
        rig.sleep(0.1)
        assert rig.line.level
        assert driver.interrupt()
        assert not rig.line.level
        assert not driver.interrupt()
        rig.sleep(10_000)
        assert (driver.alarms, rig.line.pulses) == (1, 1)

    def test_an_alarm_that_was_turned_off_does_not_interrupt(self, rig: Rig) -> None:
        driver = Driver(rig.guest)
        driver.set_alarm(int(NOW) + 10)
        driver.alarm_irq_enable(False)
        rig.sleep(20)
        assert rig.line.pulses == 0
        driver.alarm_irq_enable(True)
        assert rig.line.pulses == 0, "it is cleared before"

    def test_an_alarm_follows_a_clock_that_is_set(self, rig: Rig) -> None:
        driver = Driver(rig.guest)
        driver.set_alarm(int(NOW) + 100)
        driver.set_time(int(NOW) + 95)
        rig.sleep(5)
        assert rig.line.level

    def test_it_follows_a_host_whose_clock_is_set(self, rig: Rig) -> None:
        """An alarm is looked for once an hour at least."""
        driver = Driver(rig.guest)
        driver.set_alarm(int(NOW) + 100_000)
        rig.now += 99_000  # nobody is told
        rig.sleep(500)
        assert not rig.line.level
        rig.sleep(3200)
        assert rig.line.level

    def test_a_host_clock_set_back_raises_nothing_that_has_passed(self, rig: Rig) -> None:
        driver = Driver(rig.guest)
        driver.set_alarm(int(NOW) + 10)
        rig.sleep(10)
        driver.interrupt()
        rig.now -= 1000
        assert driver.read_time() == int(NOW) + 10 - 1000
        assert not rig.line.level
        rig.sleep(1000)
        assert driver.interrupt(), "it has come again"

    def test_a_host_clock_set_back_to_the_alarm_raises_it(self, rig: Rig) -> None:
        driver = Driver(rig.guest)
        driver.set_alarm(int(NOW) + 10)
        rig.sleep(20)
        assert driver.interrupt()
        rig.now -= 10
        driver.read_time()
        assert rig.line.level

    def test_an_alarm_is_looked_for_often_enough_to_heed_a_host_clock_set_past_it(self, rig: Rig) -> None:
        driver = Driver(rig.guest)
        driver.set_alarm(int(NOW) + 100_000)
        rig.now += 100_001
        rig.sleep(10)
        assert rig.line.level

    def test_an_alarm_over_the_end_of_the_32_bits(self, rig: Rig) -> None:
        driver = Driver(rig.guest)
        driver.set_time(WRAP - 2)
        driver.set_alarm(1)
        rig.sleep(2)
        assert driver.read_time() == 0
        assert not rig.line.level
        rig.sleep(1)
        assert driver.interrupt()


def test_snapshot_goes_on_with_the_hosts_time(rig: Rig) -> None:
    driver = Driver(rig.guest)
    driver.set_time(7000)
    driver.set_alarm(7010)
    other = Rig(NOW + 5)
    other.rtc.restore(rig.rtc.snapshot())
    assert other.guest.read(DR) == 7005
    other.sleep(5)
    assert other.line.level


def test_an_alarm_that_came_while_it_was_saved_is_raised(rig: Rig) -> None:
    Driver(rig.guest).set_alarm(int(NOW) + 10)
    other = Rig(NOW + 5000)
    other.rtc.restore(rig.rtc.snapshot())
    assert other.line.level


def test_no_timer_after_close(rig: Rig) -> None:
    Driver(rig.guest).set_alarm(int(NOW) + 10)
    rig.rtc.close()
    assert all(timer.cancelled for _, _, timer, _ in rig.timers)
    rig.guest.write(MR, int(NOW) + 20)
    assert all(timer.cancelled for _, _, timer, _ in rig.timers)


class ClockMachine(RuleBasedStateMachine):
    """Against a clock that is asked at every second there is."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Pl031()
        self.now, self.offset, self.match, self.raised, self.mask = 1000.0, 0, 0, False, False
        self.clock.look(self.now)

    def second(self) -> int:
        return (int(self.now) + self.offset) % WRAP

    @rule(seconds=st.integers(0, 30), fraction=st.sampled_from([0.0, 0.25, 0.5]))
    def pass_(self, seconds: int, fraction: float) -> None:
        before, self.now = int(self.now), self.now + seconds + fraction
        for second in range(before + 1, int(self.now) + 1):
            self.raised |= (second + self.offset) % WRAP == self.match

    @rule(ahead=st.integers(-5, 40))
    def set_match(self, ahead: int) -> None:
        self.match = (self.second() + ahead) % WRAP
        self.clock.write(MR, self.match, self.now)
        self.raised |= ahead == 0

    @rule(value=st.one_of(st.integers(0, 100), st.integers(WRAP - 20, WRAP - 1)))
    def load(self, value: int) -> None:
        self.clock.write(LR, value, self.now)
        self.offset += value - self.second()
        self.raised |= value == self.match

    @rule(mask=st.booleans())
    def set_mask(self, mask: bool) -> None:
        self.mask = mask
        self.clock.write(IMSC, int(mask), self.now)

    @rule(value=st.integers(0, 3))
    def clear(self, value: int) -> None:
        self.clock.write(ICR, value, self.now)
        self.raised &= not value & 1

    @rule(offset=st.integers(0, 0x30).map(lambda n: 4 * n), value=st.integers(0, WRAP - 1))
    def write_what_is_not_there(self, offset: int, value: int) -> None:
        if offset in (DR, CR, RIS, MIS) or offset > ICR:
            self.clock.write(offset, value, self.now)

    @rule()
    def through_a_snapshot(self) -> None:
        state = self.clock.snapshot()
        self.clock = Pl031(state)
        assert self.clock.snapshot() == state

    @rule()
    def registers(self) -> None:
        values = [self.clock.read(offset, self.now) for offset in (DR, MR, CR, IMSC, RIS, MIS)]
        assert values == [self.second(), self.match, 1, self.mask, self.raised, self.raised and self.mask]

    @invariant()
    def the_next_interrupt_is_when_it_comes(self) -> None:
        self.clock.look(self.now)
        assert self.clock.interrupt == (self.raised and self.mask)
        delay = self.clock.next_interrupt(self.now)
        assert (delay is None) == (self.raised or not self.mask)
        if delay is not None:
            at = self.now + delay
            assert (int(at) + self.offset) % WRAP == self.match
            assert at == int(at)
            assert 0 < delay <= WRAP


class TestClock(ClockMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 0x40), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
        max_size=40,
    )
)
def test_any_width_anywhere_has_an_answer(accesses: list[tuple[bool, int, int, int]]) -> None:
    rig = Rig()
    for is_write, offset, size, value in accesses:
        if is_write:
            rig.guest.write(offset, value & (1 << 8 * size) - 1, size)
        else:
            assert 0 <= rig.guest.read(offset, size) < 1 << 8 * size
        rig.sleep(0.5)


def test_reset_has_no_match_behind_it() -> None:
    clock = Pl031(Pl031State())
    clock.look(NOW)
    assert not clock.raised
