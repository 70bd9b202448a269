"""Random guests: nothing raises, and the fast path shows what a UART without one would have shown."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiovmm.devices.serial import SerialPort, Uart16550
from aiovmm.devices.serial.shell import QUIET
from aiovmm.irq import RecordingLine
from tests.devices import linux_8250 as linux
from tests.devices.exitloop import Vcpu

OUT2 = 0x08
OFFSET = st.integers(0, 7)
BYTE = st.one_of(st.integers(0, 255), st.sampled_from([0x00, 0x01, 0x02, 0x07, 0x08, 0x10, 0x80, 0xC7]))


class UartMachine(RuleBasedStateMachine):
    """Any accesses in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.uart = Uart16550()

    @rule(offset=OFFSET)
    def read(self, offset: int) -> None:
        assert 0 <= self.uart.read(offset) <= 0xFF

    @rule(offset=OFFSET, value=BYTE)
    def write(self, offset: int, value: int) -> None:
        self.uart.write(offset, value)

    @rule(data=st.binary(max_size=40))
    def receive(self, data: bytes) -> None:
        room = self.uart.room
        before = len(self.uart.receiver.queue)
        assert self.uart.receive(data) == min(room, len(data))
        assert len(self.uart.receiver.queue) == before + min(room, len(data))

    @rule(lines=BYTE)
    def modem(self, lines: int) -> None:
        self.uart.set_modem_lines(lines)

    @rule(shown=BYTE)
    def note(self, shown: int) -> None:
        self.uart.note_iir(shown)

    @rule()
    def transmitted(self) -> None:
        self.uart.transmitted()

    @rule()
    def break_(self) -> None:
        self.uart.receive_break()

    @rule()
    def through_a_snapshot(self) -> None:
        state = self.uart.snapshot()
        self.uart = Uart16550()
        self.uart.restore(state)
        assert self.uart.snapshot() == state

    @invariant()
    def data_ready_tells_of_data(self) -> None:
        assert bool(self.uart.lsr & 1) == bool(self.uart.receiver.queue)
        assert len(self.uart.receiver.queue) <= (16 if self.uart.receiver.fifo else 1)

    @invariant()
    def interrupt_is_what_iir_says(self) -> None:
        assert self.uart.interrupt == (not self.uart.iir & 1 and bool(self.uart.modem.control & OUT2))

    @invariant()
    def no_interrupt_that_is_not_enabled(self) -> None:
        enable = {0x06: 4, 0x04: 1, 0x0C: 1, 0x02: 2, 0x00: 8, 0x01: 0}[self.uart.iir & 0x0F]
        assert self.uart.ier & enable == enable

    @invariant()
    def the_transmitter_is_ready(self) -> None:
        assert self.uart.lsr & 0x60 == 0x60


class FastPathMachine(RuleBasedStateMachine):
    """The same guest on a port with posted writes and shadows, drained at any time, and on a bare UART with neither."""

    def __init__(self) -> None:
        super().__init__()
        self.line = RecordingLine()
        self.output = bytearray()
        self.port = SerialPort(self.line, self.output.extend)
        self.guest = Vcpu(self.port)
        self.plain = Uart16550()

    @rule(offset=OFFSET.filter(lambda o: o != 2))
    def read(self, offset: int) -> None:
        assert self.guest.read(offset) == self.plain.read(offset)
        self.plain.receive_dropped()

    @rule(offset=OFFSET, value=BYTE)
    def write(self, offset: int, value: int) -> None:
        self.guest.write(offset, value)
        self.plain.write(offset, value)
        self.plain.transmitted()
        self.plain.receive_dropped()

    @rule(data=st.binary(max_size=40))
    def receive(self, data: bytes) -> None:
        assert self.port.receive(data) == (0 if self.plain.dropped else self.plain.receive(data))

    @rule()
    def identify(self) -> None:
        """IIR may lag, but only about the THRE interrupt, and its withdrawal goes by what was shown."""
        shown, true = self.guest.read(2), self.plain.iir
        if shown != true:
            assert {shown & 0x0F, true & 0x0F} & {0x02}
        self.plain.note_iir(shown)

    @rule()
    def drain(self) -> None:
        self.guest.drain()

    @precondition(lambda self: not self.guest.ring)
    @rule()
    def settled(self) -> None:
        state, plain = self.port.snapshot(), self.plain.snapshot()
        assert state.received == plain.received
        assert (state.ier, state.lcr, state.mcr, state.scr) == (plain.ier, plain.lcr, plain.mcr, plain.scr)
        assert state.interrupt == plain.interrupt
        assert self.port.fast.shadow[2] == self.plain.iir
        assert bytes(self.output) == bytes(self.plain.output)

    def teardown(self) -> None:
        self.guest.drain()
        self.settled()


class TestUart(UartMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


class TestFastPath(FastPathMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@given(
    st.lists(st.tuples(st.booleans(), OFFSET, st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)), max_size=40)
)
def test_any_width_anywhere_has_an_answer(accesses: list[tuple[bool, int, int, int]]) -> None:
    guest = Vcpu(SerialPort(RecordingLine(), lambda _: None))
    for is_write, offset, size, value in accesses:
        if offset + size > 8:
            continue
        if is_write:
            guest.write(offset, value & (1 << 8 * size) - 1, size)
        else:
            assert 0 <= guest.read(offset, size) < 1 << 8 * size


GAPS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["drain", "drain", "feed", "later"])), min_size=1, max_size=30
)


class ScheduledCall:
    """A timer."""

    def __init__(self, timers: list[ScheduledCall], callback: Callable[[], None]) -> None:
        self.timers, self.callback = timers, callback

    def cancel(self) -> None:
        if self in self.timers:
            self.timers.remove(self)


class Schedule:
    """A guest's port accesses, with the event loop, the host's input and the passing of time strewn in between them."""

    def __init__(self, steps: list[str], patient: bool, rest: bytearray) -> None:
        self.line, self.output, self.rest = RecordingLine(), bytearray(), rest
        self.timers: list[ScheduledCall] = []
        self.port = SerialPort(self.line, self.output.extend, call_later=self.call_later if patient else None)
        self.port.set_writable_callback(self.feed)
        self.guest = Vcpu(self.port)
        self.steps = cycle(steps)

    def call_later(self, delay: float, callback: Callable[[], None]) -> ScheduledCall:
        call = ScheduledCall(self.timers, callback)
        if delay < QUIET:  # that one passes only where the guest leaves the port alone
            self.timers.append(call)
        return call

    def feed(self) -> None:
        if self.rest:
            del self.rest[: self.port.receive(bytes(self.rest[:20]))]

    def step(self, what: str) -> None:
        match what:
            case "drain":
                self.guest.drain()
            case "feed":
                self.feed()
            case "later" if self.timers:
                self.timers.pop().callback()

    def read(self, offset: int) -> int:
        self.step(next(self.steps))
        return self.guest.read(offset)

    def write(self, offset: int, value: int) -> None:
        self.step(next(self.steps))
        self.guest.write(offset, value)


@given(
    gaps=GAPS,
    writes=st.lists(st.integers(1, 60), max_size=8),
    offered=st.binary(max_size=100),
    patient=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_linux_loses_nothing_whatever_the_timing(
    gaps: list[tuple[int, str]], writes: list[int], offered: bytes, patient: bool
) -> None:
    """`gaps`: so many accesses of the guest with nothing else happening, and then that."""
    _exchange(gaps, writes, b"", offered, patient)


@given(gaps=GAPS, offered=st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_linux_loses_nothing_that_was_typed_ahead(gaps: list[tuple[int, str]], offered: bytes) -> None:
    _exchange(gaps, [], offered, b"", patient=True)


def _exchange(gaps: list[tuple[int, str]], writes: list[int], ahead: bytes, offered: bytes, patient: bool) -> None:
    """`ahead` is there before the driver is, which then `writes` while it is `offered` more."""
    steps = [step for gap, what in gaps for step in [""] * gap + [what]]
    schedule = Schedule(steps, patient, bytearray(ahead))
    if ahead:
        schedule.feed()
        assert linux.autoconfig(schedule) == "16550A"
    seen = schedule.line.pulses
    linux.startup(schedule)
    schedule.rest.extend(offered)
    tty, sent = linux.Tty(schedule), b""
    for size in [*writes, *[0] * 200]:
        if size:
            data = bytes(i % 256 for i in range(size))
            sent += data
            tty.write(data)
        else:  # nothing is left but to wait
            for what in ("drain", "feed", "drain", "later"):
                schedule.step(what)
        if schedule.line.pulses > seen:
            seen = schedule.line.pulses  # several edges are one in the local APIC
            tty.interrupt()
    assert bytes(schedule.output) == sent
    assert bytes(tty.received) == ahead + offered
