"""What a guest sees of a PL061: the manual's tables and rules, and a power key that Linux's gpio-keys notices each time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiovmm.devices.pl061 import POWER_KEY, KeyState, Pl061, Pl061Gpio, Pl061State
from aiovmm.devices.pl061.key import PATIENCE, Key
from aiovmm.irq import RecordingLine
from tests.devices.exitloop import Vcpu
from tests.devices.linux_pl061 import AFSEL, DIR, IBE, IC, IE, IEV, IS, MIS, RIS, GpioKeys

STORED = [DIR, IS, IBE, IEV, IE, AFSEL]
POWER = 1 << POWER_KEY
LINES = st.integers(0, 255)


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Rig:
    def __init__(self) -> None:
        self.line = RecordingLine()
        self.timers: list[Timer] = []
        self.gpio = Pl061Gpio(self.line, self.call_later)
        self.guest = Vcpu(self.gpio)
        self.keys = GpioKeys(self.guest, POWER_KEY)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        assert delay == PATIENCE
        self.timers.append(Timer(callback))
        return self.timers[-1]

    def patience(self) -> None:
        """So much time passes."""
        timers, self.timers = self.timers, []
        for timer in timers:
            if not timer.cancelled:
                timer.callback()

    def settle(self) -> None:
        """The guest runs until there is nothing for it to do."""
        for _ in range(20):
            if self.line.level:
                assert self.keys.interrupt()
            elif self.keys.due:
                self.keys.work()
            else:
                return
        raise AssertionError("it is interrupted for ever")


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestManual:
    """DDI 0190, table 3-1 and the descriptions of the registers."""

    @pytest.mark.parametrize("offset", [0x3FC, *STORED, RIS, MIS, IC])
    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_all_is_zero_after_reset(self, rig: Rig, offset: int, size: int) -> None:
        assert rig.guest.read(offset, size) == 0

    @pytest.mark.parametrize("offset", STORED)
    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_eight_bits_can_be_written(self, rig: Rig, offset: int, size: int) -> None:
        for value in (0xFFFFFFFF, 0, 0xA5A5A5A5, 0x5A):
            rig.guest.write(offset, value & (1 << 8 * size) - 1, size)
            assert rig.guest.read(offset, 4) == value & 0xFF

    def test_it_is_a_pl061(self, rig: Rig) -> None:
        values = [rig.guest.read(offset, 4) for offset in range(0xFE0, 0x1000, 4)]
        assert values == [0x61, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1]
        assert rig.guest.exits.sync == 0

    def test_what_is_reserved_reads_as_zero_and_cannot_be_written(self, rig: Rig) -> None:
        for offset in range(0x424, 0xFE0, 4):
            rig.guest.write(offset, 0xFFFFFFFF, 4)
            assert rig.guest.read(offset, 4) == 0

    @pytest.mark.parametrize("offset", [RIS, MIS])
    def test_status_cannot_be_written(self, rig: Rig, offset: int) -> None:
        rig.guest.write(offset, 0xFF)
        assert rig.guest.read(offset) == 0

    def test_the_address_masks_the_data(self, rig: Rig) -> None:
        """Figures 2-2 and 2-3: 0xFB written at 0x098 changes bits 1, 2 and 5; read at 0x0C4 are bits 0, 4 and 5."""
        rig.guest.write(DIR, 0xFF)
        rig.guest.write(0x098, 0xFB)
        assert rig.guest.read(0x3FC) == 0x22
        rig.guest.write(0x3FC, 0xFE)
        assert rig.guest.read(0x0C4) == 0x30
        rig.guest.write(0x000, 0x00)
        assert rig.guest.read(0x3FC) == 0xFE
        assert rig.guest.read(0x000) == 0

    def test_inputs_cannot_be_written(self, rig: Rig) -> None:
        rig.guest.write(0x3FC, 0xFF)
        rig.guest.write(DIR, 0xFF)
        assert rig.guest.read(0x3FC) == 0

    def test_two_registers_by_64_bits(self, rig: Rig) -> None:
        rig.guest.write(DIR, 0x22 << 32 | 0x11, 8)
        assert (rig.guest.read(DIR), rig.guest.read(IS)) == (0x11, 0x22)

    @pytest.mark.parametrize(
        ("sense", "both", "event", "rises", "falls"),
        [
            (0, 0, 1, True, False),
            (0, 0, 0, False, True),
            (0, 1, 0, True, True),
            (0, 1, 1, True, True),
        ],
    )
    def test_edges_stay_until_they_are_cleared(
        self, sense: int, both: int, event: int, rises: bool, falls: bool
    ) -> None:
        lines = Pl061(Pl061State(sense=sense << 5, both=both << 5, event=event << 5, enable=0xFF))
        for level, seen in ((0x20, rises), (0x00, falls)):
            lines.drive(level)
            lines.drive(level)
            assert (lines.ris, lines.interrupt) == (0x20 if seen else 0, seen)
            lines.write(IC, 0xDF)
            assert lines.interrupt == seen, "it is not among the cleared"
            lines.write(IC, 0x20)
            assert not lines.interrupt

    @pytest.mark.parametrize(("event", "level"), [(1, 0x20), (0, 0x00)])
    def test_levels_count_while_they_last_and_cannot_be_cleared(self, event: int, level: int) -> None:
        lines = Pl061(Pl061State(sense=0x20, event=event << 5, enable=0x20))
        lines.drive(level)
        lines.write(IC, 0xFF)
        assert lines.read(MIS) == 0x20
        lines.drive(level ^ 0x20)
        assert lines.read(MIS) == 0

    def test_the_mask_is_of_the_interrupt_and_not_of_what_is_seen(self) -> None:
        lines = Pl061(Pl061State(both=0xFF))
        lines.drive(0x41)
        assert (lines.read(RIS), lines.read(MIS), lines.interrupt) == (0x41, 0, False)
        lines.write(IE, 0x01)
        assert (lines.read(RIS), lines.read(MIS), lines.interrupt) == (0x41, 0x01, True)


class LinesMachine(RuleBasedStateMachine):
    """Against a model of each line on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = Pl061()
        self.registers = dict.fromkeys(STORED, 0)
        self.level, self.output, self.edge = [False] * 8, [False] * 8, [False] * 8

    def bit(self, register: int, line: int) -> bool:
        return bool(self.registers[register] >> line & 1)

    @rule(register=st.sampled_from(STORED), value=LINES)
    def write(self, register: int, value: int) -> None:
        self.registers[register] = value
        self.lines.write(register, value)

    @rule(mask=LINES, value=LINES)
    def write_data(self, mask: int, value: int) -> None:
        self.lines.write(mask << 2, value)
        for line in range(8):
            if mask >> line & 1 and self.bit(DIR, line):
                self.output[line] = bool(value >> line & 1)

    @rule(inputs=LINES)
    def drive(self, inputs: int) -> None:
        self.lines.drive(inputs)
        for line in range(8):
            after = bool(inputs >> line & 1)
            moved = after != self.level[line] and not self.bit(DIR, line) and not self.bit(IS, line)
            self.edge[line] |= moved and (self.bit(IBE, line) or after == self.bit(IEV, line))
            self.level[line] = after

    @rule(value=LINES)
    def clear(self, value: int) -> None:
        self.lines.write(IC, value)
        self.edge = [edge and not value >> line & 1 for line, edge in enumerate(self.edge)]

    @rule()
    def through_a_snapshot(self) -> None:
        state = self.lines.snapshot()
        self.lines = Pl061(state)
        assert self.lines.snapshot() == state

    @rule(mask=LINES)
    def read_data(self, mask: int) -> None:
        values = [self.output[n] if self.bit(DIR, n) else self.level[n] for n in range(8)]
        assert self.lines.read(mask << 2) == sum(values[n] << n for n in range(8) if mask >> n & 1)

    @invariant()
    def status(self) -> None:
        raw = 0
        for line in range(8):
            at_level = not self.bit(DIR, line) and self.level[line] == self.bit(IEV, line)
            raw |= (at_level if self.bit(IS, line) else self.edge[line]) << line
        assert self.lines.read(RIS) == raw
        assert self.lines.read(MIS) == raw & self.registers[IE]
        assert self.lines.interrupt == bool(raw & self.registers[IE])

    @invariant()
    def stored(self) -> None:
        assert {register: self.lines.read(register) for register in STORED} == self.registers


class TestLines(LinesMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


class TestPowerKey:
    def test_linux_sees_it_pressed_and_let_go(self, rig: Rig) -> None:
        rig.keys.probe()
        rig.keys.open()
        rig.settle()
        rig.gpio.press_power_button()
        assert rig.line.level
        assert rig.keys.interrupt()
        assert not rig.line.level, "acknowledged; it has not looked yet"
        assert rig.keys.events == []
        rig.settle()
        assert rig.keys.events == [1, 0]
        assert not rig.line.level

    def test_it_is_down_for_as_long_as_linux_has_not_looked(self, rig: Rig) -> None:
        rig.keys.probe()
        rig.gpio.press_power_button()
        rig.keys.interrupt()
        for _ in range(3):
            rig.gpio.press_power_button()
        assert rig.keys.events == []
        rig.settle()
        assert rig.keys.events == [1, 0], "impatience is one press"

    def test_one_that_is_pressed_before_the_driver_is_there_is_not_lost(self, rig: Rig) -> None:
        rig.gpio.press_power_button()
        rig.patience()
        rig.keys.probe()
        rig.keys.open()
        rig.settle()
        assert rig.keys.events == [1, 0]

    @pytest.mark.parametrize("early", [True, False])
    def test_each_press_is_noticed(self, rig: Rig, early: bool) -> None:
        """`early`: before the guest has seen that it was let go."""
        rig.keys.probe()
        rig.gpio.press_power_button()
        rig.keys.interrupt()
        rig.keys.work()
        if early:
            rig.gpio.press_power_button()
        rig.settle()
        if not early:
            rig.gpio.press_power_button()
            rig.settle()
        assert rig.keys.events == [1, 0, 1, 0]

    def test_a_driver_that_takes_the_edge_alone_for_a_press_gets_each(self, rig: Rig) -> None:
        rig.guest.write(IEV, POWER)
        rig.guest.write(IE, POWER)
        for _ in range(3):
            rig.gpio.press_power_button()
            assert rig.line.level
            rig.guest.write(IC, POWER)
            assert not rig.line.level
            rig.patience()
            rig.patience()
        assert rig.line.pulses == 3

    def test_a_driver_that_polls_finds_it_down_and_then_up(self, rig: Rig) -> None:
        rig.gpio.press_power_button()
        assert [rig.guest.read(POWER << 2) for _ in range(3)] == [POWER] * 3
        rig.patience()
        assert rig.guest.read(POWER << 2) == 0
        assert rig.line.pulses == 0

    def test_looking_at_other_lines_is_not_looking(self, rig: Rig) -> None:
        rig.keys.probe()
        rig.gpio.press_power_button()
        rig.guest.read(0x3FC & ~(POWER << 2))
        assert rig.guest.read(POWER << 2) == POWER

    def test_the_others_are_low(self, rig: Rig) -> None:
        rig.gpio.press_power_button()
        assert rig.guest.read(0x3FC) == POWER

    def test_snapshot_goes_on_in_another(self, rig: Rig) -> None:
        rig.keys.probe()
        rig.gpio.press_power_button()
        other = Rig()
        other.gpio.restore(rig.gpio.snapshot())
        assert other.gpio.snapshot() == rig.gpio.snapshot()
        assert other.line.level
        other.settle()
        assert other.keys.events == [1, 0]

    def test_no_timer_after_close(self, rig: Rig) -> None:
        rig.gpio.press_power_button()
        rig.guest.read(POWER << 2)
        rig.gpio.close()
        assert all(timer.cancelled for timer in rig.timers)
        rig.guest.read(POWER << 2)
        assert all(timer.cancelled for timer in rig.timers)


@given(st.lists(st.sampled_from(["press", "run", "interrupt", "work", "patience"]), max_size=40))
@settings(max_examples=300, deadline=None)
def test_linux_never_misses_the_last_press(steps: list[str]) -> None:
    """However the guest's two steps, impatience and the presses mix: after all there was a press and a release more."""
    rig = Rig()
    rig.keys.probe()
    for step in steps:
        match step:
            case "press":
                rig.gpio.press_power_button()
            case "run":
                rig.settle()
            case "interrupt":
                rig.keys.interrupt()
            case "work":
                rig.keys.work()
            case "patience" if not rig.line.level and not rig.keys.due:  # a guest that runs does not take so long
                rig.patience()
    rig.settle()
    before = len(rig.keys.events)
    assert rig.keys.events == [1, 0] * (before // 2)
    assert not steps or "press" not in steps or before >= 2
    rig.gpio.press_power_button()
    rig.settle()
    assert rig.keys.events[before:] == [1, 0]


def test_a_key_that_nobody_presses_stays_up() -> None:
    key = Key()
    key.over()
    key.looked(True)
    key.acknowledged()
    assert (key.state, key.down, key.waits) == (KeyState.UP, False, False)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0x3F0, 0x430), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
        max_size=40,
    )
)
def test_any_width_anywhere_has_an_answer(accesses: list[tuple[bool, int, int, int]]) -> None:
    rig = Rig()
    rig.gpio.press_power_button()
    for is_write, offset, size, value in accesses:
        if is_write:
            rig.guest.write(offset, value & (1 << 8 * size) - 1, size)
        else:
            assert 0 <= rig.guest.read(offset, size) < 1 << 8 * size
