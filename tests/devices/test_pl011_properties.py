"""Random guests: nothing raises, and the fast path shows what a PL011 without one would have shown."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiovmm.devices.pl011 import HANDED_OVER, Pl011, Pl011Port, Pl011State
from aiovmm.irq import RecordingLine
from tests.devices import linux_pl011 as linux
from tests.devices.exitloop import Vcpu
from tests.devices.linux_pl011 import CR, DR, FR, ICR, IMSC, LCR_H, MIS, RIS

REGISTERS = [DR, 0x04, FR, 0x20, 0x24, 0x28, LCR_H, CR, 0x34, IMSC, RIS, MIS, ICR, 0x48]
OFFSET = st.one_of(st.sampled_from(REGISTERS), st.sampled_from(range(0, 0x1000, 4)))
VALUE = st.one_of(
    st.integers(0, 0xFFFF), st.sampled_from([0x00, 0x10, 0x20, 0x40, 0x70, 0x7FF, 0x301, 0x381, 0x300, 0xFF81, 0x8301])
)
STATE = st.sampled_from([None, HANDED_OVER])
RX, TX, RT = 0x10, 0x20, 0x40
LEVELS = (2, 4, 8, 12, 14, 14, 14, 14)


class UartMachine(RuleBasedStateMachine):
    """Any accesses in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.uart = Pl011()
        self.sent = 0

    @rule(offset=OFFSET)
    def read(self, offset: int) -> None:
        assert 0 <= self.uart.read(offset) <= 0xFFFF

    @rule(offset=OFFSET, value=VALUE, mask=st.sampled_from([0xFF, 0xFFFF, 0xFFFFFFFF, 0xFF00]))
    def write(self, offset: int, value: int, mask: int) -> None:
        self.uart.write(offset, value & mask, mask)

    @rule()
    def hand_over(self) -> None:
        self.uart.restore(HANDED_OVER)

    @rule(data=st.binary(max_size=40))
    def receive(self, data: bytes) -> None:
        room, before = self.uart.room, len(self.uart.receiver.queue)
        assert self.uart.receive(data) == min(room, len(data))
        assert len(self.uart.receiver.queue) == before + min(room, len(data))

    @rule(lines=VALUE)
    def modem(self, lines: int) -> None:
        self.uart.set_modem_lines(lines)

    @rule()
    def transmitted(self) -> None:
        self.uart.transmitted()

    @rule()
    def break_(self) -> None:
        self.uart.receive_break()

    @rule()
    def through_a_snapshot(self) -> None:
        state = self.uart.snapshot()
        self.uart = Pl011()
        self.uart.restore(state)
        assert self.uart.snapshot() == state

    @invariant()
    def flags_tell_of_the_receiver(self) -> None:
        waiting, depth = len(self.uart.receiver.queue), 16 if self.uart.peek(LCR_H) & 0x10 else 1
        assert waiting <= depth
        assert self.uart.flags & 0x50 == (0x10 if waiting == 0 else 0) | (0x40 if waiting == depth else 0)

    @invariant()
    def flags_tell_of_the_transmitter(self) -> None:
        waiting, depth = len(self.uart.snapshot().unsent), 16 if self.uart.peek(LCR_H) & 0x10 else 1
        assert waiting <= depth
        assert self.uart.flags & 0xA8 == (0x08 if waiting else 0x80) | (0x20 if waiting == depth else 0)
        assert not (waiting and self.uart.sends), "one that sends keeps nothing"

    @invariant()
    def the_interrupt_is_what_stands_and_is_not_masked(self) -> None:
        assert self.uart.mis == self.uart.interrupts.raised & self.uart.peek(IMSC)
        assert self.uart.interrupt == bool(self.uart.peek(MIS))

    @invariant()
    def receive_interrupts_have_a_cause(self) -> None:
        waiting = len(self.uart.receiver.queue)
        level = LEVELS[self.uart.peek(0x34) >> 3] if self.uart.peek(LCR_H) & 0x10 else 1
        assert waiting >= level or not self.uart.interrupts.raised & RX
        assert waiting or not self.uart.interrupts.raised & RT

    @invariant()
    def what_is_unseen_stands(self) -> None:
        assert self.uart.interrupts.unseen & ~self.uart.interrupts.raised == 0


class FastPathMachine(RuleBasedStateMachine):
    """The same guest on a port with posted writes and shadows, drained at any time, and on a bare UART with neither."""

    def __init__(self) -> None:
        super().__init__()
        self.line = RecordingLine()
        self.output = bytearray()
        self.port = Pl011Port(self.line, self.output.extend, state=HANDED_OVER)
        self.guest = Vcpu(self.port)
        self.plain = Pl011(HANDED_OVER)

    @rule(offset=OFFSET.filter(lambda o: o not in (RIS, MIS)), size=st.sampled_from([1, 2, 4]))
    def read(self, offset: int, size: int) -> None:
        if offset < 0xFE0:
            assert self.guest.read(offset, size) == self.plain.read(offset) & (1 << 8 * size) - 1
        self.plain.receive_dropped()

    @rule(offset=OFFSET, value=VALUE, size=st.sampled_from([1, 2, 4]))
    def write(self, offset: int, value: int, size: int) -> None:
        mask = (1 << 8 * size) - 1
        self.guest.write(offset, value & mask, size)
        self.plain.write(offset, value & mask, mask)
        self.plain.transmitted()
        self.plain.receive_dropped()

    @rule(data=st.binary(max_size=40))
    def receive(self, data: bytes) -> None:
        assert self.port.receive(data) == (0 if self.plain.dropped else self.plain.receive(data))

    @rule(offset=st.sampled_from([RIS, MIS]))
    def ask(self, offset: int) -> None:
        """The transmit interrupt may lag, and a clear goes by what was shown."""
        waited = self.guest.exits.sync
        behind = any(
            is_write and offset == DR for is_write, offset, _ in self.guest.ring
        )  # what comes of it is not shown yet
        shown, true = self.guest.read(offset, 2), self.plain.peek(offset)
        waited = self.guest.exits.sync - waited
        assert shown == true if waited else shown | TX == true | TX
        assert shown & ~true == 0, "nothing too early"
        self.plain.interrupts.shown(shown if waited else shown & TX if not behind else 0)

    @rule()
    def drain(self) -> None:
        self.guest.drain()

    @precondition(lambda self: not self.guest.ring)
    @rule()
    def settled(self) -> None:
        assert self.port.snapshot() == self.plain.snapshot()
        assert self.line.level == self.plain.interrupt
        assert bytes(self.output) == bytes(self.plain.output)
        for offset in REGISTERS[1:]:
            if offset != ICR:
                assert int.from_bytes(self.port.fast.shadow[offset : offset + 4], "little") == self.plain.peek(offset)

    def teardown(self) -> None:
        self.guest.drain()
        self.settled()


class TestUart(UartMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


class TestFastPath(FastPathMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 0x60), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
        max_size=40,
    ),
    STATE,
)
def test_any_width_anywhere_has_an_answer(accesses: list[tuple[bool, int, int, int]], state: Pl011State | None) -> None:
    guest = Vcpu(Pl011Port(RecordingLine(), lambda _: None, state=state))
    for is_write, offset, size, value in accesses:
        if is_write:
            guest.write(offset, value & (1 << 8 * size) - 1, size)
        else:
            assert 0 <= guest.read(offset, size) < 1 << 8 * size


GAPS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["drain", "drain", "feed"])), min_size=1, max_size=30)


class NoTimer:
    """That time passes only where the guest leaves the port alone."""

    def cancel(self) -> None:
        """Nothing to do."""


class Schedule:
    """A guest's accesses, with the event loop and the host's input strewn in between them."""

    def __init__(self, steps: list[str], rest: bytearray) -> None:
        self.line, self.output, self.rest = RecordingLine(), bytearray(), rest
        self.port = Pl011Port(self.line, self.output.extend, call_later=self.call_later, state=HANDED_OVER)
        self.port.set_writable_callback(self.feed)
        self.guest = Vcpu(self.port, width=2)
        self.steps = cycle(steps)

    def call_later(self, delay: float, callback: Callable[[], None]) -> NoTimer:
        return NoTimer()

    def feed(self) -> None:
        if self.rest:
            del self.rest[: self.port.receive(bytes(self.rest[:20]))]

    def step(self, what: str) -> None:
        if what == "drain":
            self.guest.drain()
        elif what == "feed":
            self.feed()

    def read(self, offset: int, size: int = 0) -> int:
        self.step(next(self.steps))
        return self.guest.read(offset, size)

    def write(self, offset: int, value: int, size: int = 0) -> None:
        self.step(next(self.steps))
        self.guest.write(offset, value, size)


@given(
    gaps=GAPS,
    writes=st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=8),
    ahead=st.binary(max_size=60),
    offered=st.binary(max_size=100),
    reopens=st.integers(0, 2),
)
@settings(max_examples=400, deadline=None)
def test_linux_loses_nothing_whatever_the_timing(
    gaps: list[tuple[int, str]], writes: list[tuple[int, bool]], ahead: bytes, offered: bytes, reopens: int
) -> None:
    """`gaps`: so many accesses of the guest with nothing else happening, and then that. `ahead` is there before the driver is."""
    schedule = Schedule([step for gap, what in gaps for step in [""] * gap + [what]], bytearray(ahead))
    schedule.feed()
    linux.probe(schedule)
    linux.set_termios(schedule)
    tty, sent = linux.Tty(schedule), b""
    for _ in range(reopens):
        tty.startup()
        tty.shutdown()
    tty.startup()
    schedule.rest.extend(offered)
    for size, by_interrupt in [*writes, *[(0, False)] * 40]:
        data = bytes(i % 256 for i in range(size))
        sent += data
        if size:
            (tty.start_by_interrupt if by_interrupt else tty.write)(data)
        else:  # nothing is left but to wait
            for what in ("drain", "feed", "drain"):
                schedule.step(what)
        if schedule.line.level:
            assert tty.interrupt()
    assert bytes(schedule.output) == sent
    assert tty.drained == b""
    assert bytes(tty.received) == ahead + offered
