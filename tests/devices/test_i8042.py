"""What a guest sees of the keyboard controller: an idle one that works, with nothing plugged in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.devices.i8042 import I8042
from aiovmm.irq import RecordingLine
from tests.devices.exitloop import Vcpu

DATA, CONTROL_B, COMMAND = 0, 1, 4
OBF, IBF, KEYLOCK, AUXDATA, TIMEOUT = 0x01, 0x02, 0x10, 0x20, 0x40


class Rig:
    def __init__(self) -> None:
        self.resets: list[str] = []
        self.line = RecordingLine()
        self.device = I8042(self.resets.append, self.line)
        self.guest = Vcpu(self.device)

    def status(self) -> int:
        return self.guest.read(COMMAND)

    def command(self, code: int, parameter: int | None = None) -> tuple[int, int] | None:
        """As i8042_command does; the answer and the status it came with, None if there is none."""
        assert not self.status() & IBF
        self.guest.write(COMMAND, code)
        if parameter is not None:
            self.guest.write(DATA, parameter)
        status = self.status()
        return (self.guest.read(DATA), status) if status & OBF else None


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestReboot:
    def test_reset_line(self, rig: Rig) -> None:
        """Linux's native_machine_emergency_restart: kb_wait, then 0xFE."""
        assert not rig.status() & IBF
        rig.guest.write(COMMAND, 0xFE)
        assert rig.resets == ["keyboard controller"]
        assert rig.guest.exits.sync == 1  # kb_wait cost none

    def test_output_port(self, rig: Rig) -> None:
        assert rig.command(0xD1, 0x03) is None
        assert rig.resets == []
        rig.command(0xD1, 0x02)
        assert len(rig.resets) == 1

    @pytest.mark.parametrize("code", [0xF1, 0xFD, 0xFF])
    def test_other_pulses_do_not_reset(self, rig: Rig, code: int) -> None:
        rig.guest.write(COMMAND, code)
        assert rig.resets == []


class TestProbe:
    def test_linux_finds_a_controller_without_devices(self, rig: Rig) -> None:
        # i8042_flush: nothing is waiting
        assert not rig.status() & OBF
        # i8042_controller_selftest
        assert rig.command(0xAA) == (0x55, rig.status() | OBF)
        # i8042_controller_init: the command byte reads the same twice, and can be written
        control = rig.command(0x20)
        assert control == rig.command(0x20)
        assert control is not None
        assert rig.status() & KEYLOCK
        disabled = (control[0] | 0x10) & ~0x01
        rig.command(0x60, disabled)
        assert rig.command(0x20) == (disabled, rig.status() | OBF)
        # i8042_check_aux: the loop test answers, but not from an AUX port; the interface test fails
        looped = rig.command(0xD3, 0x5A)
        assert looped is not None
        assert not looped[1] & AUXDATA
        tested = rig.command(0xA9)
        assert tested is not None
        assert tested[0] not in (0x00, 0xFA, 0xFF)

    def test_a_byte_for_the_keyboard_is_refused_at_once(self, rig: Rig) -> None:
        """atkbd's GETID; libps2 ends on NAK and not on its time-out, if the interrupt is enabled."""
        rig.command(0x60, 0x41)
        rig.guest.write(DATA, 0xF2)
        assert rig.line.pulses == 1
        assert rig.status() & (OBF | TIMEOUT | AUXDATA) == OBF | TIMEOUT
        assert rig.guest.read(DATA) == 0xFE
        assert not rig.status() & OBF

    def test_a_byte_for_the_mouse_is_refused_too(self, rig: Rig) -> None:
        answer = rig.command(0xD4, 0xF4)
        assert answer is not None
        assert answer[0] == 0xFE
        assert answer[1] & (AUXDATA | TIMEOUT) == AUXDATA | TIMEOUT
        assert rig.line.pulses == 0

    def test_no_interrupt_unless_enabled(self, rig: Rig) -> None:
        rig.command(0x60, 0x40)
        rig.guest.write(DATA, 0xF2)
        assert rig.line.pulses == 0


class TestCommands:
    def test_memory(self, rig: Rig) -> None:
        assert rig.command(0x7F, 0x99) is None
        answer = rig.command(0x3F)
        assert answer is not None
        assert answer[0] == 0x99
        assert rig.command(0x21, None) == (0, answer[1])

    @pytest.mark.parametrize(("disable", "enable", "bit"), [(0xAD, 0xAE, 0x10), (0xA7, 0xA8, 0x20)])
    def test_ports_are_enabled_and_disabled(self, rig: Rig, disable: int, enable: int, bit: int) -> None:
        rig.command(disable)
        assert self.answer(rig, 0x20) & bit
        rig.command(enable)
        assert not self.answer(rig, 0x20) & bit

    @pytest.mark.parametrize(("code", "value"), [(0xAB, 0x00), (0xC0, 0x80), (0xD0, 0x03)])
    def test_answers(self, rig: Rig, code: int, value: int) -> None:
        assert self.answer(rig, code) == value

    def test_keyboard_echo(self, rig: Rig) -> None:
        assert rig.command(0xD2, 0x1C) == (0x1C, rig.status() | OBF)

    def test_status_tells_commands_from_data(self, rig: Rig) -> None:
        rig.guest.write(COMMAND, 0x60)
        assert rig.status() & 0x08
        rig.guest.write(DATA, 0x45)
        assert not rig.status() & 0x08

    def answer(self, rig: Rig, code: int) -> int:
        answer = rig.command(code)
        assert answer is not None
        return answer[0]


class TestSystemControl:
    def test_port_61_never_makes_anybody_wait(self, rig: Rig) -> None:
        """Linux's PIT calibration waits for bit 5, its NMI handler looks at bits 7 and 6."""
        assert rig.guest.read(CONTROL_B) == 0x20
        assert rig.guest.exits.sync == 0
        rig.guest.write(CONTROL_B, 0xFD)
        assert rig.guest.read(CONTROL_B) == 0x2D


def test_ports_between_read_as_ones(rig: Rig) -> None:
    rig.guest.write(2, 0, size=2)
    assert rig.guest.read(2, size=2) == 0xFFFF
    assert rig.guest.read(1, size=4) == rig.status() << 24 | 0xFFFF20
    assert rig.guest.read(0, size=4) == 0xFFFF2000


def test_snapshot_goes_on_in_another(rig: Rig) -> None:
    rig.command(0x7F, 0x99)
    rig.guest.write(COMMAND, 0xD0)
    rig.guest.write(CONTROL_B, 0x03)
    other = Rig()
    other.device.restore(rig.device.snapshot())
    assert other.device.snapshot() == rig.device.snapshot()
    assert other.status() == rig.status()
    assert other.guest.read(DATA) == 0x03


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 255)), max_size=60))
def test_any_access_has_an_answer_and_the_input_is_never_busy(accesses: list[tuple[bool, int, int]]) -> None:
    rig = Rig()
    for is_write, offset, value in accesses:
        if is_write:
            rig.guest.write(offset, value)
        else:
            rig.guest.read(offset)
        assert not rig.status() & IBF
        assert rig.status() == rig.device.read(COMMAND, 1)[0]
