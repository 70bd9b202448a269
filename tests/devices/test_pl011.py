"""What a guest sees of a PL011: the manual's tables, Linux's driver, the interrupt's level; and what the host sees of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aiovmm.bus import BatchDevice, NotingDevice, Policy, RunDevice
from aiovmm.devices.pl011 import HANDED_OVER, Pl011, Pl011Port, Pl011State
from aiovmm.devices.serial.shell import ANSWERS, QUIET
from aiovmm.errors import SnapshotError
from aiovmm.irq import RecordingLine
from tests.devices import linux_pl011 as linux
from tests.devices.exitloop import Vcpu
from tests.devices.linux_pl011 import (
    CR,
    DMACR,
    DR,
    FBRD,
    FEN,
    FR,
    IBRD,
    ICR,
    IFLS,
    ILPR,
    IMSC,
    LBE,
    LCR_H,
    MIS,
    RIS,
    RSR,
    RTI,
    RXE,
    RXI,
    TXE,
    TXI,
    UARTEN,
    WLEN_8,
)

ON = UARTEN | TXE | RXE
OVERRUN, BREAK = 0x400, 0x200  # interrupts


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Rig:
    """A port with a recorded line and output, and a guest in front of it."""

    def __init__(self, state: Pl011State | None = HANDED_OVER, patient: bool = False) -> None:
        self.line = RecordingLine()
        self.chunks: list[bytes] = []
        self.timers: list[Timer] = []
        call_later = self.call_later if patient else None
        self.port = Pl011Port(self.line, self.chunks.append, call_later=call_later, state=state)
        self.guest = Vcpu(self.port, width=2)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        assert delay == QUIET
        self.timers.append(Timer(callback))
        return self.timers[-1]

    def quiet(self) -> None:
        """The guest leaves the port alone for long enough."""
        timers, self.timers = self.timers, []
        for timer in timers:
            if not timer.cancelled:
                timer.callback()

    @property
    def output(self) -> bytes:
        return b"".join(self.chunks)

    def feed(self, rest: bytearray) -> None:
        """Offer what there is now and whenever there is room."""

        def offer() -> None:
            while rest and (taken := self.port.receive(bytes(rest))):
                del rest[:taken]

        self.port.set_writable_callback(offer)
        offer()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_it_offers_the_hooks_of_the_exit_loop(rig: Rig) -> None:
    assert isinstance(rig.port, BatchDevice)
    assert isinstance(rig.port, RunDevice)
    assert isinstance(rig.port, NotingDevice)


class TestManual:
    """DDI 0183, table 3-1 and the tables of the registers."""

    @pytest.mark.parametrize(
        ("offset", "reset"),
        [
            (DR, 0),
            (RSR, 0),
            (FR, 0x90 | 0x07),  # the modem bits are those of a terminal that is there
            (ILPR, 0),
            (IBRD, 0),
            (FBRD, 0),
            (LCR_H, 0),
            (CR, 0x300),
            (IFLS, 0x12),
            (IMSC, 0),
            (RIS, 0),
            (MIS, 0),
            (DMACR, 0),
        ],
    )
    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_values_after_reset(self, offset: int, reset: int, size: int) -> None:
        rig = Rig(state=None)
        assert rig.guest.read(offset, size) == reset & (1 << 8 * size) - 1

    @pytest.mark.parametrize(
        ("offset", "bits"),
        [
            (ILPR, 0xFF),
            (IBRD, 0xFFFF),
            (FBRD, 0x3F),
            (LCR_H, 0xFF),
            (CR, 0xFF87),
            (IFLS, 0x3F),
            (IMSC, 0x7FF),
            (DMACR, 0x07),
        ],
    )
    @pytest.mark.parametrize("size", [2, 4])
    def test_bits_that_can_be_written(self, rig: Rig, offset: int, bits: int, size: int) -> None:
        for value in ((1 << 8 * size) - 1, 0, 0xA5A5, 0x5A5A):
            rig.guest.write(offset, value, size)
            assert rig.guest.read(offset, 4) == value & bits
            assert rig.port.read(offset, 4) == (value & bits).to_bytes(4, "little"), "the shadow tells the truth"

    @pytest.mark.parametrize("offset", [FR, RIS, MIS])
    def test_status_cannot_be_written(self, rig: Rig, offset: int) -> None:
        before = rig.guest.read(offset, 4)
        rig.guest.write(offset, 0xFFFFFFFF, 4)
        assert rig.guest.read(offset, 4) == before
        assert rig.guest.exits.sync == 0

    def test_it_is_a_pl011_of_revision_1(self, rig: Rig) -> None:
        values = [rig.guest.read(offset, 4) for offset in range(0xFE0, 0x1000, 4)]
        assert values == [0x11, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1]
        assert rig.guest.exits.sync == 0

    def test_what_is_reserved_reads_as_zero_and_cannot_be_written(self, rig: Rig) -> None:
        for offset in [0x08, 0x0C, 0x10, 0x14, 0x1C, *range(0x4C, 0xFE0, 4)]:
            rig.guest.write(offset, 0xFFFFFFFF, 4)
            assert rig.guest.read(offset, 4) == 0
        assert rig.guest.exits.sync == 0

    def test_an_access_of_64_bits_is_two_registers(self, rig: Rig) -> None:
        rig.guest.write(IBRD, 0x11 << 32 | 0x2222, 8)
        assert (rig.guest.read(IBRD), rig.guest.read(FBRD)) == (0x2222, 0x11)
        assert rig.guest.read(IBRD, 8) == 0x11 << 32 | 0x2222

    def test_a_narrow_write_leaves_the_other_bits(self, rig: Rig) -> None:
        rig.guest.write(IBRD, 0x1234)
        rig.guest.write(IBRD, 0x56, 1)
        assert rig.guest.read(IBRD) == 0x1256
        rig.guest.write(IBRD + 1, 0x78, 1)
        assert rig.guest.read(IBRD) == 0x7856

    @pytest.mark.parametrize(("select", "level"), [(0, 2), (1, 4), (2, 8), (3, 12), (4, 14)])
    def test_receive_trigger_levels(self, rig: Rig, select: int, level: int) -> None:
        rig.guest.write(IFLS, select << 3)
        rig.port.receive(bytes(level - 1))
        assert rig.guest.read(RIS) & (RXI | RTI) == RTI
        rig.port.receive(b"x")
        assert rig.guest.read(RIS) & (RXI | RTI) == RXI | RTI
        rig.guest.read(DR)
        assert rig.guest.read(RIS) & (RXI | RTI) == RTI, "below the level"
        for _ in range(level - 1):
            rig.guest.read(DR)
        assert rig.guest.read(RIS) == 0, "empty"

    def test_a_level_that_is_lowered_to_what_is_there_is_reached(self, rig: Rig) -> None:
        rig.port.receive(b"abc")
        assert rig.guest.read(RIS) & RXI == 0
        rig.guest.write(IFLS, 0)
        assert rig.guest.read(RIS) & RXI
        rig.guest.write(IFLS, 0x20)
        assert rig.guest.read(RIS) & RXI == 0

    def test_without_fifos_one_character_is_the_level(self, rig: Rig) -> None:
        rig.guest.write(LCR_H, WLEN_8)
        assert rig.port.receive(b"ab") == 1
        assert rig.guest.read(FR) & 0x50 == 0x40, "full, not empty"
        assert rig.guest.read(RIS) & (RXI | RTI) == RXI | RTI
        assert rig.guest.read(DR) == ord("a")
        assert rig.guest.read(RIS) & (RXI | RTI) == 0
        assert rig.guest.read(FR) & 0x50 == 0x10

    @pytest.mark.parametrize("bit", range(11))
    def test_the_interrupt_is_what_is_raised_and_not_masked(self, bit: int) -> None:
        rig = Rig(Pl011State(cr=ON, ris=1 << bit))
        rig.guest.write(IMSC, 0x7FF & ~(1 << bit))
        assert (rig.guest.read(MIS), rig.line.level) == (0, False)
        rig.guest.write(IMSC, 1 << bit)
        assert (rig.guest.read(MIS), rig.line.level) == (1 << bit, True)
        rig.guest.write(ICR, 0x7FF & ~(1 << bit))
        assert (rig.guest.read(RIS), rig.line.level) == (1 << bit, True)
        rig.guest.write(ICR, 1 << bit)
        assert (rig.guest.read(RIS), rig.guest.read(MIS), rig.line.level) == (0, 0, False)

    @pytest.mark.parametrize(
        ("output", "status", "interrupt"),
        [(0x0800, 0x001, 0x02), (0x0400, 0x002, 0x08), (0x1000, 0x004, 0x04), (0x2000, 0x100, 0x01)],
    )
    def test_loopback_maps_modem_outputs_to_inputs(self, rig: Rig, output: int, status: int, interrupt: int) -> None:
        rig.guest.write(CR, ON | LBE)
        assert rig.guest.read(FR) & 0x107 == 0
        assert rig.guest.read(RIS) & 0x0F == 0x0E, "all that were there have gone"
        rig.guest.write(ICR, 0x0F)
        rig.guest.write(CR, ON | LBE | output)
        assert rig.guest.read(FR) & 0x107 == status
        assert rig.guest.read(RIS) & 0x0F == interrupt

    def test_modem_inputs_show_and_interrupt_by_any_change(self) -> None:
        uart = Pl011()
        uart.set_modem_lines(0x106)
        assert uart.flags & 0x107 == 0x106
        assert uart.interrupts.raised == 0x03  # CTS has gone, RI has come
        uart.write(ICR, 0x03)
        uart.set_modem_lines(0x007)
        assert uart.interrupts.raised == 0x03

    def test_characters_come_back_in_loopback_and_not_to_the_line(self, rig: Rig) -> None:
        rig.guest.write(CR, ON | LBE)
        assert rig.port.receive(b"x") == 0, "the line is disconnected"
        for byte in range(16):
            rig.guest.write(DR, byte)
        assert [rig.guest.read(DR) for _ in range(16)] == list(range(16))
        rig.guest.drain()
        assert rig.output == b""

    def test_what_has_come_back_or_is_a_break_is_saved_and_there_again(self, rig: Rig) -> None:
        assert rig.port.send_break()
        rig.guest.write(CR, ON | LBE)
        for byte in range(15):
            rig.guest.write(DR, byte)
        state, again = rig.port.save(), Rig()
        again.port.load(state)
        assert [again.guest.read(DR) for _ in range(16)] == [0x400, *range(15)]
        uart = state["uart"]
        assert isinstance(uart, dict)
        for word in (0x1000, 0x8000, 0x20000):
            with pytest.raises(SnapshotError, match="serial port"):
                Rig().port.load({**state, "uart": {**uart, "received": [word]}})

    def test_overrun_keeps_the_fifo_and_is_told_with_the_next_character(self, rig: Rig) -> None:
        rig.guest.write(CR, ON | LBE)
        for byte in range(18):
            rig.guest.write(DR, byte)
        assert rig.guest.read(RIS) & OVERRUN
        assert rig.guest.read(RSR) == 0x08, "at once"
        assert rig.guest.read(DR) == 0x00
        rig.guest.write(DR, 0x55)
        assert [rig.guest.read(DR) for _ in range(15)] == list(range(1, 16))
        assert rig.guest.read(DR) == 0x855
        rig.guest.write(RSR, 0, 1)
        assert rig.guest.read(RSR) == 0
        rig.guest.write(DR, 0x66)
        assert rig.guest.read(DR) == 0x66

    def test_a_break_is_a_zero_with_its_error(self, rig: Rig) -> None:
        rig.port.receive(b"a")
        assert rig.port.send_break()
        assert rig.guest.read(RIS) & BREAK
        assert rig.guest.read(DR) == ord("a")
        assert rig.guest.read(RSR) == 0
        assert rig.guest.read(DR) == 0x400
        assert rig.guest.read(RSR) == 0x04
        rig.port.receive(b"b")
        assert rig.guest.read(DR) == ord("b")
        assert rig.guest.read(RSR) == 0, "of the character read last"

    def test_a_break_of_its_own_comes_back_in_loopback(self, rig: Rig) -> None:
        rig.guest.write(CR, ON | LBE)
        rig.guest.write(LCR_H, FEN | WLEN_8 | 0x01)
        rig.guest.write(LCR_H, FEN | WLEN_8 | 0x01)
        assert rig.guest.read(DR) == 0x400
        assert rig.guest.read(FR) & 0x10, "one zero, however long it lasts"

    @pytest.mark.parametrize("off", [TXE | RXE, UARTEN | RXE])
    def test_what_is_written_while_the_transmitter_is_off_waits(self, rig: Rig, off: int) -> None:
        rig.guest.write(CR, off)
        for count in range(16):
            assert rig.guest.read(FR) & 0xA8 == (0x08 if count else 0x80), "busy as soon as the FIFO is not empty"
            rig.guest.write(DR, 0x41 + count)
        assert rig.guest.read(FR) & 0xA8 == 0x28
        rig.guest.write(DR, 0x7A)
        assert rig.output == b""
        rig.guest.write(CR, ON)
        rig.guest.drain()
        rig.port.end_of_batch()
        assert rig.output == b"ABCDEFGHIJKLMNOP", "the one too many is lost"
        assert rig.guest.read(FR) & 0xA8 == 0x80

    def test_turning_the_fifos_off_flushes_them(self, rig: Rig) -> None:
        rig.guest.write(CR, UARTEN | RXE)
        rig.guest.write(DR, 0x41)
        rig.guest.write(LCR_H, WLEN_8)
        assert rig.guest.read(FR) & 0xA8 == 0x80
        rig.guest.write(DR, 0x42)
        assert rig.guest.read(FR) & 0xA8 == 0x28, "one is full"
        rig.guest.write(CR, ON)
        rig.port.end_of_batch()
        assert rig.output == b"B"

    def test_flow_control_holds_the_transmitter_until_cts(self) -> None:
        uart = Pl011(Pl011State(cr=ON | 0x8000, lcr_h=FEN, lines=0))
        uart.write(DR, 0x41)
        assert uart.output == b""
        uart.set_modem_lines(0x01)
        assert uart.output == b"A"

    @pytest.mark.parametrize("off", [TXE | RXE, UARTEN | TXE])
    def test_a_receiver_that_is_off_takes_nothing_and_the_rest_comes_later(self, rig: Rig, off: int) -> None:
        rig.guest.write(CR, off)
        rest = bytearray(b"abc")
        rig.feed(rest)
        assert rig.guest.read(FR) & 0x10
        rig.guest.write(CR, ON)
        assert bytes(rig.guest.read(DR) for _ in range(3)) == b"abc"
        assert not rest


class TestTransmitInterrupt:
    def test_it_does_not_stand_before_anything_was_written(self, rig: Rig) -> None:
        rig.guest.write(IMSC, TXI)
        assert not rig.line.level

    def test_it_rises_when_what_was_written_has_left(self, rig: Rig) -> None:
        rig.guest.write(IMSC, TXI)
        rig.guest.write(DR, 0x41)
        assert not rig.line.level
        rig.guest.drain()
        assert rig.line.level
        assert rig.guest.read(MIS) == TXI

    def test_it_stands_until_it_is_cleared(self, rig: Rig) -> None:
        rig.guest.write(IMSC, TXI)
        rig.guest.write(DR, 0x41)
        rig.guest.drain()
        rig.guest.write(IMSC, 0)
        assert not rig.line.level
        assert rig.guest.read(RIS) == TXI
        rig.guest.write(ICR, TXI)
        assert rig.guest.read(RIS) == 0
        rig.guest.write(IMSC, TXI)
        assert not rig.line.level

    @pytest.mark.parametrize("early", [True, False])
    def test_a_clear_right_after_a_write_is_not_of_what_comes_of_it(self, rig: Rig, early: bool) -> None:
        """On hardware the character has not left by then. `early`: the loop has seen the write before the clear."""
        rig.guest.write(IMSC, TXI)
        rig.guest.write(DR, 0x41)
        if early:
            rig.guest.drain()
        rig.guest.write(ICR, TXI)
        assert rig.line.level
        assert rig.guest.read(MIS) == TXI
        rig.guest.write(ICR, TXI)
        assert not rig.line.level, "now it was shown"

    def test_a_run_raises_it_once(self, rig: Rig) -> None:
        rig.guest.write(IMSC, TXI)
        for _ in range(16):
            rig.guest.write(DR, 0x41)
        rig.guest.drain()
        assert rig.line.pulses == 1
        assert rig.chunks == [b"A" * 16]


class TestOutput:
    def test_it_is_handed_on_once_a_drain(self, rig: Rig) -> None:
        for byte in b"hello":
            rig.guest.write(DR, byte)
        assert rig.chunks == []
        rig.guest.drain()
        assert rig.chunks == [b"hello"]
        assert rig.guest.exits.posted == 5

    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_a_run_is_the_same_as_its_writes(self, rig: Rig, size: int) -> None:
        rig.port.write_many(DR, b"".join(byte.to_bytes(size, "little") for byte in b"abc"), size)
        rig.port.end_of_batch()
        assert rig.chunks == [b"abc"]

    def test_a_run_that_comes_back_is_not_output(self, rig: Rig) -> None:
        rig.guest.write(CR, ON | LBE)
        rig.port.write_many(DR, b"a\0b\0", 2)
        rig.port.end_of_batch()
        assert rig.chunks == []
        assert [rig.guest.read(DR), rig.guest.read(DR)] == [0x61, 0x62]

    def test_memory_is_bounded_within_a_batch(self, rig: Rig) -> None:
        for _ in range(100):
            rig.port.write_many(DR, bytes(4096), 2)
        assert sum(map(len, rig.chunks)) >= 100 * 2048 - 65536

    def test_bits_above_the_character_are_not_sent(self, rig: Rig) -> None:
        rig.guest.write(DR, 0xFFFFFF41, 4)
        rig.guest.drain()
        assert rig.output == b"A"

    def test_it_is_lazy_unless_the_driver_takes_the_interrupt(self, rig: Rig) -> None:
        assert rig.port.fast.policy[DR] & Policy.LAZY_WRITE
        rig.guest.write(IMSC, TXI)
        assert rig.port.fast.policy[DR] & (Policy.LAZY_WRITE | Policy.POSTED_WRITE) == Policy.POSTED_WRITE

    def test_what_answers_input_is_not_lazy(self, rig: Rig) -> None:
        linux.Tty(rig.guest).startup()
        rig.guest.write(IMSC, 0)
        assert rig.port.fast.policy[DR] & Policy.LAZY_WRITE
        rig.port.receive(b"a")
        for _ in range(ANSWERS):
            assert not rig.port.fast.policy[DR] & Policy.LAZY_WRITE
            rig.guest.write(DR, 0x41)
            rig.guest.drain()
        assert rig.port.fast.policy[DR] & Policy.LAZY_WRITE


class TestLinux:
    def test_the_early_console_finds_the_uart_as_firmware_leaves_it(self, rig: Rig) -> None:
        linux.early_console(rig.guest, b"early\r\n")
        rig.guest.drain()
        assert rig.output == b"early\r\n"
        assert rig.guest.exits.sync == 0

    def test_messages_do_not_wait_for_the_loop(self, rig: Rig) -> None:
        linux.probe(rig.guest)
        linux.set_termios(rig.guest)
        rig.guest.exits.sync = 0
        for _ in range(3):
            linux.console_write(rig.guest, b"[    0.000000] Linux\r\n")
        rig.guest.drain()
        assert rig.output == 3 * b"[    0.000000] Linux\r\n"
        assert rig.guest.exits.sync == 0

    def test_baud_rate_and_size_are_there_for_a_console_without_options(self, rig: Rig) -> None:
        """pl011_console_get_options divides by them."""
        assert rig.guest.read(CR) & UARTEN
        assert rig.guest.read(LCR_H) & 0x60 == WLEN_8
        baud = 24_000_000 * 4 // (64 * rig.guest.read(IBRD) + rig.guest.read(FBRD))
        assert abs(baud - 115_200) < 115_200 * 0.02

    def test_tty_output_is_posted_whole(self, rig: Rig) -> None:
        tty = linux.Tty(rig.guest)
        tty.startup()
        rig.guest.exits.sync = 0
        data = bytes(range(256)) * 40
        tty.write(data)
        rig.guest.drain()
        assert rig.output == data
        assert rig.guest.exits.sync == 0
        assert not rig.line.level

    def test_a_driver_by_interrupt_is_interrupted_once_for_all(self, rig: Rig) -> None:
        tty = linux.Tty(rig.guest)
        tty.startup()
        before = rig.line.pulses
        data = bytes(range(256)) * 4
        tty.start_by_interrupt(data)
        for _ in range(1000):
            rig.guest.drain()
            if not rig.line.level:
                break
            tty.interrupt()
        assert rig.output == data
        assert rig.line.pulses == before + 1

    def test_input_arrives_whole_through_interrupts(self, rig: Rig) -> None:
        tty = linux.Tty(rig.guest)
        tty.startup()
        rest = bytearray(bytes(range(256)) * 8)
        rig.feed(rest)
        while rig.line.level:
            assert tty.interrupt()
        assert not rest
        assert bytes(tty.received) == bytes(range(256)) * 8
        assert tty.drained == b""

    def test_a_break_is_told(self, rig: Rig) -> None:
        tty = linux.Tty(rig.guest)
        tty.startup()
        assert rig.port.send_break()
        rig.port.receive(b"h")
        while rig.line.level:
            assert tty.interrupt()
        assert tty.errors == [0x400]
        assert tty.received == b"h"
        assert rig.guest.read(MIS) == 0

    def test_what_is_typed_ahead_is_not_lost_when_the_port_is_opened(self) -> None:
        """Linux drains the FIFO to be sure of its interrupt, on each open."""
        rig, rest = Rig(patient=True), bytearray(b"uname -a\npoweroff, and more than the FIFO has room for\n")
        expected = bytes(rest)
        rig.feed(rest)
        linux.probe(rig.guest)
        linux.set_termios(rig.guest)
        linux.console_write(rig.guest, b"hello")
        tty = linux.Tty(rig.guest)
        for _ in range(2):
            tty.startup()
            tty.shutdown()
        tty.startup()
        while rig.line.level:
            assert tty.interrupt()
        assert bytes(tty.received) == expected
        assert tty.drained == b""

    def test_what_comes_while_it_is_closed_comes_when_it_is_open_again(self) -> None:
        rig = Rig(patient=True)
        tty = linux.Tty(rig.guest)
        tty.startup()
        tty.shutdown()
        rig.feed(bytearray(b"abc"))
        rig.quiet()
        assert not rig.line.level
        tty.startup()
        while rig.line.level:
            assert tty.interrupt()
        assert tty.received == b"abc"
        assert tty.drained == b""

    def test_a_driver_that_polls_gets_it_once_it_has_set_the_port_up(self) -> None:
        rig, rest = Rig(patient=True), bytearray(b"typed ahead of a poller, in more than sixteen\n")
        expected = bytes(rest)
        rig.feed(rest)
        linux.probe(rig.guest)
        assert rig.guest.read(FR) & 0x10
        rig.quiet()
        received = bytearray()
        while not rig.guest.read(FR) & 0x10:
            received.append(rig.guest.read(DR))
        assert received == expected

    def test_a_driver_that_polls_and_clears_what_it_has_read_is_not_kept_waiting(self) -> None:
        rig, rest = Rig(patient=True), bytearray(b"by the raw status, one by one, and cleared each time\n")
        expected, received = bytes(rest), bytearray()
        rig.guest.write(LCR_H, WLEN_8)
        rig.guest.write(ICR, 0x7FF)
        rig.feed(rest)
        rig.quiet()
        while rig.guest.read(RIS) & RXI:
            received.append(rig.guest.read(DR))
            rig.guest.write(ICR, RXI | RTI)
        assert received == expected
        assert all(timer.cancelled for timer in rig.timers)


class TestInput:
    def test_with_fifos_sixteen(self, rig: Rig) -> None:
        assert rig.port.receive(bytes(100)) == 16
        assert rig.port.receive(b"x") == 0
        assert rig.guest.read(FR) & 0x50 == 0x40

    def test_a_driver_without_the_time_out_hears_of_all_that_waits(self, rig: Rig) -> None:
        """It reads down to its level and waits to be interrupted: what the host has must come before the FIFO is empty."""
        rest, received = bytearray(range(64)), bytearray()
        rig.guest.write(IMSC, RXI)
        rig.feed(rest)
        while rig.line.level:
            received.append(rig.guest.read(DR))
        assert not rest
        assert received == bytes(range(57)), "all but what no receive interrupt is for"

    def test_a_clear_is_not_of_what_came_after_the_guest_looked(self, rig: Rig) -> None:
        rig.guest.write(IMSC, RTI | RXI)
        rig.port.receive(b"a")
        assert rig.guest.read(RIS) == RTI
        rig.port.receive(b"bcdefgh")
        rig.guest.write(ICR, RTI | RXI)
        assert rig.line.level
        assert rig.guest.read(RIS) == RTI | RXI
        rig.guest.write(ICR, RTI | RXI)
        assert not rig.line.level

    def test_writable_is_called_when_all_was_read_and_more_waits(self, rig: Rig) -> None:
        calls: list[int] = []
        rig.guest.write(IMSC, RXI | RTI)
        rig.port.set_writable_callback(lambda: calls.append(rig.port.receive(b"second")))
        rig.port.receive(b"first")
        for _ in range(5):
            rig.guest.read(DR)
        assert calls == []  # all was taken, so nobody waits
        rig.port.receive(bytes(17))
        for _ in range(16):
            assert calls == []
            rig.guest.read(DR)
        assert calls == [6]
        assert bytes(rig.guest.read(DR) for _ in range(6)) == b"second"

    def test_the_flags_stand_before_the_interrupt(self) -> None:
        seen: list[int] = []

        class Handler(RecordingLine):
            def set_level(self, asserted: bool) -> None:
                seen.append(port.fast.shadow[FR] & 0x10)
                seen.append(port.fast.shadow[MIS])

        port = Pl011Port(Handler(), lambda _: None, state=HANDED_OVER)
        port.write(IMSC, RTI.to_bytes(2, "little"))
        port.receive(b"x")
        assert seen == [0, RTI]

    def test_reading_a_byte_of_the_word_takes_the_character(self, rig: Rig) -> None:
        rig.port.receive(b"ab")
        assert rig.guest.read(DR, 1) == ord("a")
        assert rig.guest.read(DR, 4) == ord("b")
        assert rig.guest.read(DR) == 0


def test_snapshot_goes_on_in_another_port(rig: Rig) -> None:
    tty = linux.Tty(rig.guest)
    tty.startup()
    rig.guest.write(DR, 0x21)
    rig.port.receive(b"abc")
    rig.port.send_break()
    rig.guest.drain()
    other = Rig()
    other.port.restore(rig.port.snapshot())
    assert rig.output == b"!"
    assert other.port.snapshot() == rig.port.snapshot()
    assert bytes(other.port.fast.shadow) == bytes(rig.port.fast.shadow)
    lazy = int(Policy.LAZY_WRITE)  # of output that answers what came, which only this port has seen
    assert [p | lazy for p in other.port.fast.policy] == [p | lazy for p in rig.port.fast.policy]
    assert other.line.level
    assert bytes(other.guest.read(DR) & 0xFF for _ in range(3)) == b"abc"


def test_no_timer_after_close() -> None:
    rig = Rig(patient=True)
    rig.feed(bytearray(b"abc"))
    linux.probe(rig.guest)
    assert rig.timers
    rig.port.close()
    assert all(timer.cancelled for timer in rig.timers)
