"""What a guest sees of the I/O APIC, and what the local APICs get from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiovmm.devices.ioapic import IoApic
from aiovmm.errors import UsageError
from aiovmm.irq import IrqLine, LevelLine
from tests.devices.exitloop import Vcpu

LEVEL, MASKED, REMOTE_IRR, LOGICAL, LOW_ACTIVE = 1 << 15, 1 << 16, 1 << 14, 1 << 11, 1 << 13
RESERVED = ~0xFFFE_0000_0001_FFFF  # what is neither of the data sheet nor bits 14:8 of a destination


class Apics:
    """Records messages, and holds the routing table."""

    refused: Callable[[int, int], None] | None = None

    def __init__(self) -> None:
        self.messages: list[tuple[int, int]] = []
        self.routes: dict[int, tuple[int, int]] = {}
        self.log: list[str] = []
        self.refuse = False

    def signal(self, address: int, data: int) -> bool:
        self.log.append("signal")
        if not self.refuse:
            self.messages.append((address, data))
        return not self.refuse

    def route(self, pin: int, address: int, data: int | None) -> None:
        self.log.append("route")
        if data is None:
            del self.routes[pin]  # a route that is not there is not taken away
        else:
            self.routes[pin] = (address, data)

    def ended_in_vain(self) -> None:
        self.log.append("in vain")


class Rig:
    def __init__(self) -> None:
        self.apics = Apics()
        self.ioapic = IoApic(self.apics)
        self.guest = Vcpu(self.ioapic)

    def read(self, index: int) -> int:
        self.guest.write(0, index, size=4)
        return self.guest.read(0x10, size=4)

    def write(self, index: int, value: int) -> None:
        self.guest.write(0, index, size=4)
        self.guest.write(0x10, value, size=4)

    def entry(self, pin: int) -> int:
        return self.read(0x10 + 2 * pin) | self.read(0x11 + 2 * pin) << 32

    def program(self, pin: int, low: int, destination: int = 0) -> None:
        """As Linux does: the high half first, so that the entry is whole when it is unmasked."""
        self.write(0x11 + 2 * pin, destination << 24)
        self.write(0x10 + 2 * pin, low)

    def take(self) -> list[tuple[int, int]]:
        messages, self.apics.messages = self.apics.messages, []
        return messages


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestRegisters:
    def test_version_and_reset_values(self, rig: Rig) -> None:
        assert rig.read(1) == 0x00170011
        assert [rig.entry(pin) for pin in range(24)] == [0x10000] * 24

    def test_id_and_arbitration(self, rig: Rig) -> None:
        rig.write(0, 0xFFFFFFFF)
        assert rig.read(0) == 0x0F000000
        assert rig.read(2) == 0x0F000000

    def test_reserved_and_read_only_bits(self, rig: Rig) -> None:
        rig.write(0x11, 0xFFFFFFFF)
        rig.write(0x10, 0xFFFFFFFF)
        assert rig.entry(0) == 0xFFFE00000001AFFF

    @pytest.mark.parametrize("index", [3, 0x0F, 0x40, 0xFF])
    def test_reserved_registers(self, rig: Rig, index: int) -> None:
        rig.write(index, 0xFFFFFFFF)
        assert rig.read(index) == 0

    def test_there_is_no_eoi_register(self, rig: Rig) -> None:
        rig.program(5, LEVEL | 0x31)
        rig.ioapic.set_level(5, True)
        rig.guest.write(0x40, 0x31, size=4)
        assert rig.entry(5) & REMOTE_IRR

    def test_the_index_costs_no_wait(self, rig: Rig) -> None:
        rig.read(1)
        assert (rig.guest.exits.posted, rig.guest.exits.sync) == (1, 1)

    @pytest.mark.parametrize("size", [1, 2])
    def test_narrow_writes_to_the_window_are_dropped(self, rig: Rig, size: int) -> None:
        rig.guest.write(0, 0x10)
        rig.guest.write(0x10, 0x33, size=size)
        assert rig.entry(0) == 0x10000

    def test_narrow_and_wide_reads_see_the_bytes_that_lie_there(self, rig: Rig) -> None:
        rig.guest.write(0, 1)
        assert rig.guest.read(0x12) == 0x17
        assert rig.guest.read(0x10, size=2) == 0x0011
        assert rig.guest.read(0x10, size=8) == 0x00170011
        assert rig.guest.read(0x0E, size=4) == 0x00110000
        assert rig.guest.read(0x80, size=8) == 0
        assert rig.guest.read(0) == 1


class TestMessages:
    @pytest.mark.parametrize(
        ("low", "destination", "address", "data"),
        [
            (0x0031, 0, 0xFEE00000, 0x0031),
            (0x0031, 3, 0xFEE03000, 0x0031),
            (0x0931, 0xFF, 0xFEEFF00C, 0x0131),  # logical, lowest priority
            (LOGICAL | 0x41, 1, 0xFEE01004, 0x0041),
            (0x0400, 2, 0xFEE02000, 0x0400),  # NMI
            (LEVEL | 0x52, 1, 0xFEE01000, 0xC052),
            (LEVEL | LOW_ACTIVE | 0x52, 1, 0xFEE01000, 0xC052),
        ],
    )
    def test_format(self, rig: Rig, low: int, destination: int, address: int, data: int) -> None:
        rig.program(4, low, destination)
        rig.ioapic.line(4).pulse()
        assert rig.take() == [(address, data)]

    def test_lines(self, rig: Rig) -> None:
        line = rig.ioapic.line(23)
        assert isinstance(line, IrqLine)
        assert isinstance(line, LevelLine)
        for pin in (-1, 24):
            with pytest.raises(UsageError):
                rig.ioapic.line(pin)


class TestEdge:
    def test_one_message_an_edge(self, rig: Rig) -> None:
        rig.program(4, 0x31)
        line = rig.ioapic.line(4)
        line.pulse()
        line.pulse()
        assert len(rig.take()) == 2
        line.set_level(True)
        line.set_level(True)
        line.set_level(False)
        line.set_level(True)
        assert len(rig.take()) == 2

    def test_a_masked_edge_is_lost(self, rig: Rig) -> None:
        rig.program(4, MASKED | 0x31)
        rig.ioapic.pulse(4)
        rig.program(4, 0x31)
        assert rig.take() == []

    def test_it_needs_no_route_and_sets_no_remote_irr(self, rig: Rig) -> None:
        rig.program(4, 0x31)
        rig.ioapic.pulse(4)
        assert rig.apics.routes == {}
        assert not rig.entry(4) & REMOTE_IRR


class TestLevel:
    def test_one_message_until_its_end(self, rig: Rig) -> None:
        rig.program(9, LEVEL | 0x59)
        rig.ioapic.set_level(9, True)
        rig.ioapic.set_level(9, True)
        assert rig.take() == [(0xFEE00000, 0xC059)]
        assert rig.entry(9) & REMOTE_IRR
        rig.ioapic.eoi(0x58)
        assert rig.take() == []
        assert rig.apics.log[-1] == "in vain"
        rig.ioapic.eoi(0x59)
        assert rig.take() == [(0xFEE00000, 0xC059)]  # still asserted
        rig.ioapic.set_level(9, False)
        rig.ioapic.eoi(0x59)
        assert rig.take() == []
        assert not rig.entry(9) & REMOTE_IRR

    def test_an_assertion_while_masked_waits(self, rig: Rig) -> None:
        rig.program(9, MASKED | LEVEL | 0x59)
        rig.ioapic.set_level(9, True)
        assert rig.take() == []
        rig.program(9, LEVEL | 0x59)
        assert len(rig.take()) == 1

    def test_a_release_while_masked_takes_it_back(self, rig: Rig) -> None:
        rig.program(9, MASKED | LEVEL | 0x59)
        rig.ioapic.set_level(9, True)
        rig.ioapic.set_level(9, False)
        rig.program(9, LEVEL | 0x59)
        assert rig.take() == []

    def test_the_route_comes_before_the_message(self, rig: Rig) -> None:
        rig.program(9, MASKED | LEVEL | 0x59)
        rig.ioapic.set_level(9, True)
        rig.program(9, LEVEL | 0x59, destination=1)
        assert rig.apics.log == ["route", "signal"]
        assert rig.apics.routes == {9: (0xFEE01000, 0xC059)}

    def test_the_route_stays_while_an_interrupt_is_in_service(self, rig: Rig) -> None:
        """Linux masks a one-shot interrupt in its handler and ends it while it is masked."""
        rig.program(9, LEVEL | 0x59)
        rig.ioapic.set_level(9, True)
        rig.write(0x10 + 18, MASKED | LEVEL | 0x59)
        assert 9 in rig.apics.routes
        rig.ioapic.eoi(0x59)
        assert 9 not in rig.apics.routes
        rig.take()
        rig.write(0x10 + 18, LEVEL | 0x59)
        assert 9 in rig.apics.routes
        assert len(rig.take()) == 1

    def test_routes_are_told_once(self, rig: Rig) -> None:
        for _ in range(3):
            rig.program(9, LEVEL | 0x59)
        assert rig.apics.log == ["route"]

    def test_linux_clears_remote_irr_by_way_of_edge(self, rig: Rig) -> None:
        """__eoi_ioapic_pin for versions without an EOI register."""
        rig.program(9, LEVEL | 0x59)
        rig.ioapic.set_level(9, True)
        rig.take()
        rig.write(0x10 + 18, MASKED | 0x59)
        assert not rig.entry(9) & REMOTE_IRR
        rig.write(0x10 + 18, LEVEL | 0x59)
        assert len(rig.take()) == 1

    def test_two_pins_of_one_vector_end_together(self, rig: Rig) -> None:
        for pin in (9, 10):
            rig.program(pin, LEVEL | 0x59)
            rig.ioapic.set_level(pin, True)
        rig.take()
        rig.ioapic.eoi(0x59)
        assert len(rig.take()) == 2

    @pytest.mark.parametrize(("asserted", "held", "sent"), [(True, (), 1), (False, (), 0), (True, (0x59,), 0)])
    def test_an_end_that_was_not_told_before_it_was_saved_is_heard_of(
        self, rig: Rig, asserted: bool, held: tuple[int, ...], sent: int
    ) -> None:
        """By that no local APIC has it any more; and the line is looked at again."""
        rig.program(5, 0x59 | LEVEL)
        rig.ioapic.set_level(5, True)
        rig.ioapic.set_level(5, asserted)
        again = Rig()
        asked: list[int] = []
        again.ioapic.on_end(5, lambda: asked.append(5))
        again.ioapic.load(rig.ioapic.save())
        assert again.take() == []
        again.ioapic.hear_of_ends(held)
        assert len(again.take()) == sent
        assert bool(again.entry(5) & REMOTE_IRR) == (bool(held) or asserted)
        assert asked == ([] if held else [5])
        assert "in vain" not in again.apics.log

    def test_a_message_that_nobody_took_is_not_in_service(self, rig: Rig) -> None:
        rig.program(9, LEVEL | 0x59, destination=7)
        rig.apics.refuse = True
        rig.ioapic.set_level(9, True)
        assert not rig.entry(9) & REMOTE_IRR, "no end of it would ever come"
        rig.apics.refuse = False
        rig.program(9, LEVEL | 0x59, destination=1)
        assert rig.take() == [(0xFEE01000, 0xC059)]
        assert rig.entry(9) & REMOTE_IRR

    def test_what_nobody_took_is_sent_again_at_the_end_of_its_vector(self, rig: Rig) -> None:
        for pin in (9, 10):
            rig.program(pin, LEVEL | 0x59)
        rig.ioapic.set_level(9, True)
        rig.apics.refuse = True  # KVM: the vector is pending already
        rig.ioapic.set_level(10, True)
        rig.apics.refuse = False
        rig.ioapic.set_level(9, False)
        rig.take()
        rig.ioapic.eoi(0x59)
        assert rig.take() == [(0xFEE00000, 0xC059)]
        assert rig.entry(10) & REMOTE_IRR
        assert not rig.entry(9) & REMOTE_IRR

    def test_a_pulse_counts_for_its_instant(self, rig: Rig) -> None:
        rig.program(9, LEVEL | 0x59)
        rig.ioapic.pulse(9)
        assert len(rig.take()) == 1
        rig.ioapic.pulse(9)  # in service: nothing is kept
        rig.ioapic.eoi(0x59)
        assert rig.take() == []
        rig.ioapic.set_level(9, True)
        rig.ioapic.pulse(9)
        rig.take()
        rig.ioapic.eoi(0x59)
        assert len(rig.take()) == 1  # the level was not taken away


def test_snapshot_goes_on_in_another(rig: Rig) -> None:
    rig.program(4, 0x31, destination=2)
    rig.program(9, LEVEL | 0x59)
    rig.ioapic.set_level(9, True)
    rig.write(0, 0x05000000)
    other = Rig()
    other.ioapic.restore(rig.ioapic.snapshot())
    assert other.ioapic.snapshot() == rig.ioapic.snapshot()
    assert other.apics.log == ["route"]  # and no second message
    other.ioapic.eoi(0x59)
    assert other.take() == [(0xFEE00000, 0xC059)]
    other.ioapic.restore(Rig().ioapic.snapshot())
    assert other.apics.routes == {}


def test_a_foreign_snapshot_is_refused(rig: Rig) -> None:
    state = rig.ioapic.snapshot()
    with pytest.raises(ValueError, match="23"):
        rig.ioapic.restore(type(state)(entries=state.entries[1:]))


class IoApicMachine(RuleBasedStateMachine):
    """Any accesses and lines in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()

    @rule(
        offset=st.one_of(st.sampled_from([0, 0x10]), st.integers(0, 0xF8)),
        size=st.sampled_from([1, 2, 4, 8]),
        value=st.integers(0, 2**64 - 1),
    )
    def write(self, offset: int, size: int, value: int) -> None:
        self.rig.guest.write(offset, value & (1 << 8 * size) - 1, size)

    @rule(offset=st.integers(0, 0xF8), size=st.sampled_from([1, 2, 4, 8]))
    def read(self, offset: int, size: int) -> None:
        self.rig.guest.read(offset, size)

    @rule(
        pin=st.integers(0, 23),
        low=st.sampled_from([0x31, LEVEL | 0x31, LEVEL | 0x32, MASKED | LEVEL | 0x31, MASKED | 0x31]),
    )
    def program(self, pin: int, low: int) -> None:
        self.rig.program(pin, low)

    @rule(pin=st.integers(0, 23), asserted=st.booleans())
    def level(self, pin: int, asserted: bool) -> None:
        self.rig.ioapic.set_level(pin, asserted)

    @rule(pin=st.integers(0, 23))
    def pulse(self, pin: int) -> None:
        self.rig.ioapic.pulse(pin)

    @rule(vector=st.sampled_from([0, 0x31, 0x32, 0xFF]))
    def eoi(self, vector: int) -> None:
        self.rig.ioapic.eoi(vector)

    @rule()
    def through_a_snapshot(self) -> None:
        state = self.rig.ioapic.snapshot()
        self.rig = Rig()
        self.rig.ioapic.restore(state)
        assert self.rig.ioapic.snapshot() == state

    @invariant()
    def entries_make_sense(self) -> None:
        self.rig.guest.drain()
        state = self.rig.ioapic.snapshot()
        for pin, entry in enumerate(state.entries):
            assert not entry & RESERVED
            level, masked, serviced = entry & LEVEL, entry & MASKED, entry & REMOTE_IRR
            assert level or not serviced
            # Asserted, unmasked and not in service would be an interrupt that was forgotten.
            assert not (level and not masked and not serviced and state.levels >> pin & 1)
            # The end of an interrupt in service must be heard of.
            assert (pin in self.rig.apics.routes) == bool(level and (not masked or serviced))


class TestIoApic(IoApicMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
