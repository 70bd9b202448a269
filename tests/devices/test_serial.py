"""What a guest sees of COM1: registers, Linux's driver, interrupts; and what the host sees of the guest's bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiovmm.bus import BatchDevice, NotingDevice, Policy, RunDevice
from aiovmm.devices.serial import SerialPort, Uart16550
from aiovmm.devices.serial.shell import QUIET
from aiovmm.irq import RecordingLine
from tests.devices import linux_8250 as linux
from tests.devices.exitloop import Vcpu
from tests.devices.linux_8250 import FCR, IER, IIR, LCR, LSR, MCR, MSR, OUT2, RX, SCR, TX


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Rig:
    """A port with a recorded line and output, and a guest in front of it that has opened the gate of its interrupts (OUT2).
    `patient`: interrupts may be held back."""

    def __init__(self, patient: bool = False, mcr: int = OUT2) -> None:
        self.line = RecordingLine()
        self.chunks: list[bytes] = []
        self.timers: list[Timer] = []
        self.port = SerialPort(self.line, self.chunks.append, call_later=self.call_later if patient else None)
        self.guest = Vcpu(self.port)
        self.guest.write(MCR, mcr)
        self.guest.exits.sync = 0

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        assert delay in (0.001, QUIET)
        self.timers.append(Timer(callback))
        return self.timers[-1]

    def millisecond(self) -> None:
        """Time passes."""
        timers, self.timers = self.timers, []
        for timer in timers:
            if not timer.cancelled:
                timer.callback()

    @property
    def output(self) -> bytes:
        return b"".join(self.chunks)

    def fifo(self) -> None:
        self.guest.write(FCR, 0xC1)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_it_offers_the_hooks_of_the_exit_loop(rig: Rig) -> None:
    assert isinstance(rig.port, BatchDevice)
    assert isinstance(rig.port, RunDevice)
    assert isinstance(rig.port, NotingDevice)


class TestLinux:
    def test_autoconfig_takes_it_for_a_16550a(self, rig: Rig) -> None:
        assert linux.autoconfig(rig.guest) == "16550A"
        rig.guest.drain()
        assert rig.output == b""  # nothing of the loopback test reached the line

    def test_autoconfig_on_the_bare_state_machine(self) -> None:
        assert linux.autoconfig(Uart16550()) == "16550A"

    def test_the_fifo_holds_sixteen_bytes(self, rig: Rig) -> None:
        assert linux.size_fifo(rig.guest) == 16

    def test_startup_finds_no_bugs(self, rig: Rig) -> None:
        assert linux.startup(rig.guest) == set()
        assert rig.guest.read(LSR) == 0x60

    def test_a_console_line_waits_only_for_the_interrupt_enable(self, rig: Rig) -> None:
        linux.startup(rig.guest)
        rig.guest.exits.sync = 0
        saved = rig.guest.read(IER)
        rig.guest.write(IER, 0)
        for byte in b"[    0.000000] Linux\r\n":
            assert rig.guest.read(LSR) & linux.BOTH_EMPTY == linux.BOTH_EMPTY
            rig.guest.write(TX, byte)
        rig.guest.write(IER, saved)
        assert rig.output == b"[    0.000000] Linux\r\n"
        assert rig.guest.exits.sync == 2

    @pytest.mark.parametrize("lag", [0, 1, 3, 16, 17, 19, 1000])
    @pytest.mark.parametrize("patient", [False, True])
    def test_tty_output_comes_whole_however_late_the_loop_is(self, lag: int, patient: bool) -> None:
        """`lag`: the loop gets to its ring after that many accesses of the guest."""
        rig, data = Rig(patient), bytes(range(256)) * 40
        linux.startup(rig.guest)
        tty = linux.Tty(LaggingLoop(rig.guest, lag))
        pulses = rig.line.pulses
        tty.write(data)
        for _ in range(100_000):
            if rig.line.pulses == pulses:
                rig.guest.drain()
                rig.millisecond()
                if rig.line.pulses == pulses:
                    break
            pulses = rig.line.pulses
            tty.interrupt()
        assert rig.output == data
        assert not tty.transmit
        if patient and lag < 16:  # the guest finds all in its one handler
            assert rig.line.pulses < 20
        assert rig.guest.exits.sync < 100  # start-up, start and stop; not one for each burst

    def test_input_arrives_whole_through_interrupts(self, rig: Rig) -> None:
        linux.startup(rig.guest)
        tty = linux.Tty(rig.guest)
        rest = bytearray(bytes(range(256)) * 8)

        def feed() -> None:
            while rest and (n := rig.port.receive(bytes(rest))):
                del rest[:n]

        rig.port.set_writable_callback(feed)
        feed()
        for _ in range(1000):
            if not tty.interrupt():
                break
        assert not rest
        assert bytes(tty.received) == bytes(range(256)) * 8
        assert rig.line.pulses > 0

    def test_both_ways_at_once_lose_nothing(self, rig: Rig) -> None:
        linux.startup(rig.guest)
        tty = linux.Tty(LaggingLoop(rig.guest, 5))
        out, rest = bytes(range(256)) * 4, bytearray(b"input " * 50)

        def feed() -> None:
            if rest:
                del rest[: rig.port.receive(bytes(rest[:3]))]

        rig.port.set_writable_callback(feed)
        tty.write(out)
        seen = 0
        for _ in range(10_000):
            feed()
            rig.guest.drain()
            if rig.line.pulses > seen:
                seen = rig.line.pulses
                tty.interrupt()
        assert rig.output == out
        assert bytes(tty.received) == b"input " * 50


class LaggingLoop:
    """A guest whose event loop takes what was posted after every `lag` accesses."""

    def __init__(self, guest: Vcpu, lag: int) -> None:
        self.guest, self.lag, self.count = guest, lag, 0

    def read(self, offset: int) -> int:
        self.tick()
        return self.guest.read(offset)

    def write(self, offset: int, value: int) -> None:
        self.tick()
        self.guest.write(offset, value)

    def tick(self) -> None:
        self.count += 1
        if self.lag == 0 or self.count % self.lag == 0:
            self.guest.drain()


class TestOutput:
    def test_it_is_handed_on_once_a_drain(self, rig: Rig) -> None:
        for byte in b"hello":
            rig.guest.write(TX, byte)
        assert rig.chunks == []
        rig.guest.drain()
        assert rig.chunks == [b"hello"]
        assert rig.guest.exits.posted == 5

    def test_a_run_is_the_same_as_its_bytes(self, rig: Rig) -> None:
        rig.port.write_many(TX, b"abc")
        rig.port.write_many(SCR, b"\x01\x02")
        rig.port.end_of_batch()
        assert rig.chunks == [b"abc"]
        assert rig.port.snapshot().scr == 2

    def test_a_run_to_the_divisor_is_not_output(self, rig: Rig) -> None:
        rig.guest.write(LCR, 0x80)
        rig.port.write_many(TX, b"\x01\x02")
        rig.port.end_of_batch()
        assert rig.chunks == []
        assert rig.guest.read(0) == 2

    def test_memory_is_bounded_within_a_batch(self, rig: Rig) -> None:
        for _ in range(100):
            rig.port.write_many(TX, bytes(4096))
        assert sum(map(len, rig.chunks)) >= 100 * 4096 - 65536

    def test_the_transmitter_is_always_ready(self, rig: Rig) -> None:
        for i in range(1000):
            assert rig.guest.read(LSR) == 0x60
            rig.guest.write(TX, i & 0xFF)

    def test_a_run_raises_one_interrupt(self, rig: Rig) -> None:
        rig.guest.write(IER, 0x02)
        assert rig.line.pulses == 1
        assert rig.guest.read(IIR) == 0x02
        for _ in range(16):
            rig.guest.write(TX, 0x41)
        rig.guest.drain()
        assert rig.line.pulses == 2


class TestTransmitInterrupt:
    def test_reading_iir_withdraws_it(self, rig: Rig) -> None:
        rig.guest.write(IER, 0x02)
        assert rig.guest.read(IIR) == 0x02
        rig.guest.drain()
        assert rig.guest.read(IIR) == 0x01

    def test_a_read_that_did_not_show_it_leaves_it(self, rig: Rig) -> None:
        """The guest reads IIR while its write to THR is still in the ring: the interrupt to come must not be lost."""
        rig.guest.write(IER, 0x02)
        rig.guest.read(IIR)
        rig.guest.drain()
        rig.guest.write(TX, 0x41)
        assert rig.guest.read(IIR) == 0x01  # not shown yet
        before = rig.line.pulses
        rig.guest.drain()
        assert rig.line.pulses == before + 1
        assert rig.guest.read(IIR) == 0x02

    def test_enabling_raises_it_again_and_again(self, rig: Rig) -> None:
        for n in range(1, 4):
            rig.guest.write(IER, 0x02)
            assert rig.guest.read(IIR) == 0x02
            rig.guest.write(IER, 0)
            assert rig.guest.read(IIR) == 0x01
            assert rig.line.pulses == n

    def test_input_that_came_before_the_withdrawal_gets_its_own_edge(self, rig: Rig) -> None:
        rig.guest.write(IER, 0x03)
        assert rig.guest.read(IIR) == 0x02  # on hardware INTR falls here
        rig.port.receive(b"x")
        before = rig.line.pulses
        rig.guest.drain()
        assert rig.line.pulses == before + 1
        assert rig.guest.read(IIR) == 0x04


class TestHeldBack:
    """The guest is in its handler, so far as can be known, and the loop faster than it."""

    @pytest.fixture
    def rig(self) -> Rig:
        rig = Rig(patient=True)
        rig.guest.write(IER, 0x02)
        assert rig.line.pulses == 1
        assert rig.guest.read(IIR) == 0x02
        for _ in range(16):
            rig.guest.write(TX, 0x41)
            rig.guest.drain()
        assert rig.line.pulses == 1
        return rig

    def test_dropped_when_its_cause_is_shown(self, rig: Rig) -> None:
        assert rig.guest.read(IIR) == 0x02
        rig.guest.drain()
        rig.millisecond()
        assert rig.line.pulses == 1

    def test_given_when_the_guest_leaves_without_having_seen_it(self, rig: Rig) -> None:
        rig.port.note_read(IIR, b"\x01")  # shown before the loop got to the last bytes
        rig.port.end_of_batch()
        assert rig.line.pulses == 2

    def test_given_after_a_millisecond(self, rig: Rig) -> None:
        rig.millisecond()
        assert rig.line.pulses == 2
        rig.millisecond()
        assert rig.line.pulses == 2

    def test_given_when_something_else_happens(self, rig: Rig) -> None:
        rig.guest.write(IER, 0x03)
        rig.port.receive(b"x")
        assert rig.line.pulses == 2
        assert rig.guest.read(IIR) == 0x04

    def test_dropped_when_it_is_disabled(self, rig: Rig) -> None:
        rig.guest.write(IER, 0)
        rig.millisecond()
        assert rig.line.pulses == 1

    def test_given_at_once_outside_the_handler(self, rig: Rig) -> None:
        rig.guest.read(IIR)
        rig.guest.drain()
        assert rig.guest.read(IIR) == 0x01
        rig.guest.write(TX, 0x41)
        rig.guest.drain()
        assert rig.line.pulses == 2

    def test_a_snapshot_takes_none_along(self, rig: Rig) -> None:
        rig.port.snapshot()
        assert rig.line.pulses == 2

    def test_none_is_waited_for_after_close(self, rig: Rig) -> None:
        rig.port.close()
        assert all(timer.cancelled for timer in rig.timers)
        rig.timers.clear()
        rig.guest.write(TX, 0x41)
        rig.guest.drain()
        assert rig.timers == []


class TestInput:
    def test_without_fifo_one_byte_at_a_time(self, rig: Rig) -> None:
        assert rig.port.receive(b"abc") == 1
        assert rig.port.receive(b"bc") == 0
        assert rig.guest.read(LSR) == 0x61
        assert rig.guest.read(RX) == ord("a")
        assert rig.guest.read(LSR) == 0x60
        assert rig.port.receive(b"bc") == 1

    def test_with_fifo_sixteen(self, rig: Rig) -> None:
        rig.fifo()
        assert rig.port.receive(bytes(100)) == 16
        assert rig.port.receive(b"x") == 0

    def test_writable_is_called_when_all_was_read_and_more_waits(self, rig: Rig) -> None:
        calls: list[int] = []
        rig.port.set_writable_callback(lambda: calls.append(rig.port.receive(b"second")))
        rig.fifo()
        rig.port.receive(b"first")
        for _ in range(5):
            rig.guest.read(RX)
        assert calls == []  # all was taken, so nobody waits
        rig.port.receive(bytes(17))
        for _ in range(16):
            assert calls == []
            rig.guest.read(RX)
        assert calls == [6]
        assert rig.guest.read(LSR) & 1
        assert bytes(rig.guest.read(RX) for _ in range(6)) == b"second"

    def test_what_a_cleared_fifo_had_comes_again_before_the_rest(self, rig: Rig) -> None:
        calls: list[None] = []
        rig.port.set_writable_callback(lambda: calls.append(None))
        rig.fifo()
        assert rig.port.receive(bytes(range(20))) == 16
        rig.guest.read(RX)
        rig.guest.write(FCR, 0x03)
        assert [rig.guest.read(RX) for _ in range(15)] == list(range(1, 16))
        assert calls == [None]
        assert rig.guest.read(LSR) == 0x60

    def test_what_is_typed_ahead_reaches_a_driver_that_polls_once_it_has_set_the_port_up(self) -> None:
        rig, rest = Rig(patient=True), bytearray(b"uname -a\npoweroff\n")

        def feed() -> None:
            del rest[: rig.port.receive(bytes(rest))]

        rig.port.set_writable_callback(feed)
        feed()
        linux.clear_fifos(rig.guest)
        feed()
        assert rig.guest.read(LSR) == 0x60
        rig.guest.read(RX)
        rig.millisecond()
        received = bytearray()
        while rig.guest.read(LSR) & 1:
            received.append(rig.guest.read(RX))
        assert bytes(received) == b"uname -a\npoweroff\n"

    def test_what_the_guest_sent_itself_or_a_break_does_not_come_again(self, rig: Rig) -> None:
        rig.fifo()
        rig.guest.write(MCR, 0x10)
        rig.guest.write(TX, 0x41)
        rig.guest.write(MCR, OUT2)
        rig.port.send_break()
        rig.port.receive(b"x")
        rig.guest.read(LSR)
        rig.guest.write(FCR, 0x03)
        assert rig.guest.read(RX) == ord("x")
        assert rig.guest.read(LSR) == 0x60

    def test_loopback_keeps_the_line_out(self, rig: Rig) -> None:
        calls: list[None] = []
        rig.port.set_writable_callback(lambda: calls.append(None))
        rig.guest.write(MCR, 0x10)
        assert rig.port.receive(b"x") == 0
        rig.guest.write(MCR, 0)
        assert calls == [None]

    def test_data_below_the_trigger_level_is_a_character_timeout(self, rig: Rig) -> None:
        rig.guest.write(IER, 0x01)
        rig.guest.write(FCR, 0x81)
        rig.port.receive(b"1234567")
        assert rig.guest.read(IIR) == 0xCC
        rig.port.receive(b"8")
        assert rig.guest.read(IIR) == 0xC4
        assert rig.line.pulses == 1
        for _ in range(8):
            rig.guest.read(RX)
        assert rig.guest.read(IIR) == 0xC1

    def test_the_ready_bit_stands_before_the_interrupt(self) -> None:
        seen: list[int] = []

        class Handler:
            def pulse(self) -> None:
                seen.append(port.fast.shadow[LSR])

        port = SerialPort(Handler(), lambda _: None)
        guest = Vcpu(port)
        guest.write(MCR, OUT2)
        guest.write(IER, 0x01)
        port.receive(b"x")
        assert seen == [0x61]

    def test_out2_is_the_gate_to_the_interrupt_controller(self) -> None:
        rig = Rig(mcr=0)
        rig.guest.write(IER, 0x03)
        rig.port.receive(b"x")
        assert rig.guest.read(IIR) == 0x04, "the chip says so"
        assert rig.line.pulses == 0, "the board does not pass it on"
        rig.guest.write(MCR, OUT2)
        assert rig.line.pulses == 1
        rig.guest.write(MCR, 0)
        rig.guest.write(MCR, OUT2)
        assert rig.line.pulses == 2, "still pending: the line rises again"
        rig.guest.read(RX)
        rig.guest.write(MCR, 0)
        rig.guest.write(TX, ord("y"))
        rig.guest.drain()
        assert (rig.line.pulses, rig.output) == (2, b"y")

    def test_break(self, rig: Rig) -> None:
        rig.guest.write(IER, 0x05)
        rig.fifo()
        rig.port.receive(b"a")
        assert rig.port.send_break()
        assert rig.guest.read(LSR) == 0xE1  # an error somewhere in the FIFO, not at its top
        assert rig.guest.read(RX) == ord("a")
        assert rig.guest.read(IIR) == 0xC6
        assert rig.guest.read(LSR) == 0xF1
        assert rig.guest.read(IIR) == 0xCC
        assert rig.guest.read(RX) == 0
        assert rig.guest.read(LSR) == 0x60


class TestRegisters:
    def test_priorities(self, rig: Rig) -> None:
        guest = rig.guest
        guest.write(FCR, 0x01)
        guest.write(MCR, 0x10)
        guest.read(MSR)
        guest.write(IER, 0x0F)
        guest.write(MCR, 0x12)  # CTS changes
        for byte in range(17):
            guest.write(TX, byte)
        assert guest.read(IIR) == 0xC6
        assert guest.read(LSR) == 0x63
        assert guest.read(IIR) == 0xC4
        assert [guest.read(RX) for _ in range(16)] == list(range(16))
        assert guest.read(IIR) == 0xC2
        guest.drain()
        assert guest.read(IIR) == 0xC0
        assert guest.read(MSR) == 0x11
        assert guest.read(IIR) == 0xC1

    def test_overrun_without_fifo_destroys_the_byte_before(self, rig: Rig) -> None:
        rig.guest.write(MCR, 0x10)
        rig.guest.write(TX, 0x11)
        rig.guest.write(TX, 0x22)
        assert rig.guest.read(LSR) == 0x63
        assert rig.guest.read(LSR) == 0x61
        assert rig.guest.read(RX) == 0x22

    @pytest.mark.parametrize(("mcr", "msr"), [(0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80), (0x1A, 0x90)])
    def test_loopback_maps_modem_control_to_status(self, rig: Rig, mcr: int, msr: int) -> None:
        rig.guest.write(MCR, mcr)
        assert rig.guest.read(MSR) & 0xF0 == msr

    def test_modem_deltas_are_cleared_by_reading(self, rig: Rig) -> None:
        assert rig.guest.read(MSR) == 0xB0  # a terminal is there, and always was
        rig.guest.write(MCR, 0x10)
        assert rig.guest.read(MSR) == 0x0B
        assert rig.guest.read(MSR) == 0x00
        rig.guest.write(MCR, 0x14)
        assert rig.guest.read(MSR) == 0x40  # ring: only its end counts
        rig.guest.write(MCR, 0x10)
        assert rig.guest.read(MSR) == 0x04

    def test_reserved_bits_read_as_zero(self, rig: Rig) -> None:
        rig.guest.write(IER, 0xFF)
        rig.guest.write(MCR, 0xEF)
        assert rig.guest.read(IER) == 0x0F
        assert rig.guest.read(MCR) == 0x0F

    def test_divisor_latch(self, rig: Rig) -> None:
        rig.guest.write(LCR, 0x83)
        assert linux.read_divisor(rig.guest) == 12
        linux.write_divisor(rig.guest, 0x1234)
        assert linux.read_divisor(rig.guest) == 0x1234
        rig.guest.write(LCR, 0x03)
        assert rig.guest.read(IER) == 0
        rig.guest.drain()
        assert rig.output == b""

    def test_line_and_modem_status_cannot_be_written(self, rig: Rig) -> None:
        rig.guest.write(LSR, 0xFF)
        rig.guest.write(MSR, 0xFF)
        assert (rig.guest.read(LSR), rig.guest.read(MSR)) == (0x60, 0xB0)
        assert rig.guest.exits.sync == 0

    def test_scratch_shows_the_last_write_however_late_the_loop_is(self, rig: Rig) -> None:
        rig.guest.write(SCR, 1)
        ring, rig.guest.ring = rig.guest.ring, []
        rig.guest.write(SCR, 2)
        for _, offset, data in ring:  # the loop gets to the first write only now
            rig.port.write(offset, data)
        rig.port.end_of_batch()
        assert rig.guest.read(SCR) == 2

    def test_fifo_bits_need_the_fifo(self, rig: Rig) -> None:
        assert rig.guest.read(IIR) == 0x01
        rig.guest.write(FCR, 0x80)
        assert rig.port.snapshot().trigger == 1
        rig.guest.write(FCR, 0x81)
        assert rig.port.snapshot().trigger == 8
        assert rig.guest.read(IIR) == 0xC1

    @pytest.mark.parametrize("size", [1, 2, 4, 8])
    def test_wide_accesses_are_bytes_in_a_row(self, rig: Rig, size: int) -> None:
        rig.guest.write(SCR, 0x5A)
        registers = [rig.guest.read(i) for i in range(8)]
        for offset in range(9 - size):
            expected = int.from_bytes(bytes(registers[offset : offset + size]), "little")
            assert rig.guest.read(offset, size) == expected

    def test_a_wide_write_reaches_scratch(self, rig: Rig) -> None:
        rig.guest.write(MSR, 0x7700, size=2)
        assert rig.guest.read(SCR) == 0x77


def test_snapshot_goes_on_in_another_port(rig: Rig) -> None:
    linux.startup(rig.guest)
    rig.guest.write(IER, 0x07)
    rig.guest.write(SCR, 0x42)
    rig.guest.write(TX, 0x21)
    rig.port.receive(b"abc")
    rig.guest.drain()
    other = Rig()
    other.port.restore(rig.port.snapshot())
    assert rig.output == b"!"
    assert other.line.pulses == 0
    assert other.port.snapshot() == rig.port.snapshot()
    assert bytes(other.port.fast.shadow) == bytes(rig.port.fast.shadow)
    assert bytes(other.port.fast.policy) == bytes(rig.port.fast.policy)
    assert other.guest.read(IIR) == 0xCC
    assert bytes(other.guest.read(RX) for _ in range(3)) == b"abc"
    assert other.guest.read(IIR) == 0xC2


def test_messages_before_any_interrupt_was_enabled_do_not_wait_for_the_loop(rig: Rig) -> None:
    """What Linux's console does around each: it saves IER, turns it off, and puts it back."""
    rig.guest.drain()
    before = rig.guest.exits.sync
    for _ in range(3):
        ier = rig.guest.read(IER)
        rig.guest.write(IER, 0)
        for byte in b"message":
            assert rig.guest.read(LSR) & 0x20
            rig.guest.write(TX, byte)
        rig.guest.write(IER, ier)
    rig.guest.drain()
    assert rig.output == 3 * b"message"
    assert rig.guest.exits.sync == before


@pytest.mark.parametrize("register", [IER, LCR, MCR])
def test_control_registers_change_when_something_else_is_written(rig: Rig, register: int) -> None:
    for value in (0x01, 0x01, 0x03, 0x00, 0x00, 0x01):
        rig.guest.write(register, value)
        assert rig.guest.read(register) == value
        assert rig.port._uart.read(register) == value


def test_bits_that_ier_does_not_have_are_not_taken_for_what_it_shows(rig: Rig) -> None:
    rig.guest.write(IER, 0x40)  # Linux looks for chips that keep it
    assert rig.guest.read(IER) == 0
    rig.guest.write(IER, 0x45)
    assert rig.guest.read(IER) == 0x05


def test_status_with_side_effects_waits_for_the_loop(rig: Rig) -> None:
    rig.port.send_break()
    assert not rig.port.fast.policy[LSR] & Policy.SHADOW_READ
    assert rig.guest.read(LSR) & 0x10
    assert rig.port.fast.policy[LSR] & Policy.SHADOW_READ
