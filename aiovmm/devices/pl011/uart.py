"""The PL011 as a pure state machine: register accesses and received bytes go in, output bytes and the interrupt's level
come out.

Theory of operation. While it is enabled the transmitter is infinitely fast, so the guest finds its FIFO empty and never
waits. What was written has left when `transmitted()` is called, which the owner does once for a run of writes; then the
transmit interrupt stands. The manual has it rise when the FIFO falls through the level of UARTIFLS; here it falls to empty
after each run, and so from any level. While the UART or its transmitter is off, or must wait for CTS, the FIFO fills and
says so; what it holds leaves when that is over. The receiver takes no more than its FIFO holds, and nothing while it is
off: it overruns in loopback only.

The receive time-out needs no clock: whoever calls `receive` hands over all it has, so the line has gone quiet, and it is
due at once instead of 32 bit times later.

The receive interrupt rises when the FIFO reaches its level, and not because it is above it (2.8; Linux drains the FIFO
for that reason when it opens the port, and would lose what was typed ahead). A driver that clears receive interrupts which
it does not take is about to do so, unless it has begun to read: what waits in the FIFO is then moved to `dropped`, as by
clearing the FIFOs, and comes again; see `serial.shell`.

Source: ARM PrimeCell UART (PL011) Technical Reference Manual, DDI 0183, chapters 2 and 3; the sections below are its.
"""

from __future__ import annotations

from aiovmm.devices.pl011 import registers as r
from aiovmm.devices.pl011.interrupts import Interrupts
from aiovmm.devices.pl011.modem import Modem
from aiovmm.devices.pl011.receiver import Receiver
from aiovmm.devices.pl011.state import Pl011State

__all__ = ["Pl011"]

_ALL = 0xFFFFFFFF
_RECEIVE = r.INT_RX | r.INT_RX_TIMEOUT
_SET_UP = (r.UARTIMSC, r.UARTCR, r.UARTLCR_H)
_TRANSMITS = r.CR_UARTEN | r.CR_TXE
_RECEIVES = r.CR_UARTEN | r.CR_RXE


class Pl011:
    """One UART, as `serial.shell.Uart` has it. `interrupt` is the level of UARTINTR. Nothing here raises for any access."""

    def __init__(self, state: Pl011State | None = None) -> None:
        self.output = bytearray()
        self.restore(state or Pl011State())

    # -- what the owner asks

    def snapshot(self) -> Pl011State:
        """The whole state, except `output`, which the owner takes first."""
        rx, stored = self.receiver, self._stored
        return Pl011State(
            cr=stored[r.UARTCR],
            lcr_h=stored[r.UARTLCR_H],
            ibrd=stored[r.UARTIBRD],
            fbrd=stored[r.UARTFBRD],
            ifls=stored[r.UARTIFLS],
            imsc=stored[r.UARTIMSC],
            ilpr=stored[r.UARTILPR],
            dmacr=stored[r.UARTDMACR],
            ris=self.interrupts.raised,
            unseen=self.interrupts.unseen,
            lines=self.modem.inputs,
            received=tuple(rx.queue),
            status=rx.status,
            overrun=rx.overrun,
            unsent=bytes(self._unsent),
            dropped=bytes(self.dropped),
            reading=self._reading,
            transmitting=self.transmitting,
        )

    def restore(self, state: Pl011State) -> None:
        """Put `state` in force."""
        self._stored = {
            r.UARTILPR: state.ilpr,
            r.UARTIBRD: state.ibrd,
            r.UARTFBRD: state.fbrd,
            r.UARTLCR_H: state.lcr_h,
            r.UARTCR: state.cr,
            r.UARTIFLS: state.ifls,
            r.UARTIMSC: state.imsc,
            r.UARTDMACR: state.dmacr,
        }
        self.modem = Modem(state.cr, state.lines)
        self.receiver = Receiver(
            state.received,
            fifo=bool(state.lcr_h & r.LCR_FIFOS),
            level=_receive_level(state.ifls),
            overrun=state.overrun,
            status=state.status,
        )
        self.interrupts = Interrupts(state.ris, state.unseen)
        self.transmitting = state.transmitting
        self.listening = bool(state.imsc & _RECEIVE)
        self.dropped, self._unsent = bytearray(state.dropped), bytearray(state.unsent)
        self._reading, self._cleared = state.reading, False

    def take_cleared(self) -> bool:
        """Whether the driver has cleared the receiver since the last call. What it had from the line is in `dropped`."""
        cleared, self._cleared = self._cleared, False
        return cleared

    @property
    def mis(self) -> int:
        """The interrupts that stand and are not masked."""
        return self.interrupts.raised & self._stored[r.UARTIMSC]

    @property
    def interrupt(self) -> bool:
        """The level of UARTINTR, the OR of them all (2.8)."""
        return self.mis != 0

    @property
    def loopback(self) -> bool:
        """Output goes to the receiver, modem outputs to the modem inputs."""
        return self.modem.loopback

    @property
    def sends(self) -> bool:
        """What is written to UARTDR leaves at once."""
        cr = self._stored[r.UARTCR]
        return cr & _TRANSMITS == _TRANSMITS and (not cr & r.CR_CTSEN or bool(self.modem.lines & r.FR_CTS))

    @property
    def room(self) -> int:
        """Bytes that `receive` takes now: none in loopback, and while the receiver is off."""
        on = self._stored[r.UARTCR] & _RECEIVES == _RECEIVES and not self.loopback
        return self.receiver.room if on else 0

    @property
    def drained(self) -> bool:
        """All that came has been read, or so much that a driver without the time-out interrupt hears of no more."""
        rx = self.receiver
        return not rx.queue or not (rx.triggered or self._stored[r.UARTIMSC] & r.INT_RX_TIMEOUT)

    # -- the line

    def receive(self, data: bytes) -> int:
        """Bytes arrive; returns how many were taken, at most `room`. The rest is the caller's to keep."""
        before = self.receiver.triggered
        taken = self.receiver.take(data) if self.room else 0
        if taken:
            self._arrived(before)
        return taken

    def receive_dropped(self) -> None:
        """What `dropped` has arrives again, as far as there is room."""
        del self.dropped[: self.receive(bytes(self.dropped))]

    def receive_break(self) -> bool:
        """A break arrives: a zero byte with the break error. False when there is no room for it."""
        return bool(self.room) and self._take_break()

    def set_modem_lines(self, lines: int) -> None:
        """The other end drives CTS, DSR, DCD and RI, as UARTFR has them."""
        self.interrupts.add(self.modem.drive(lines))
        self._go_on()

    def transmitted(self) -> None:
        """All that was written has left, and the transmit interrupt stands."""
        if self.transmitting:
            self.transmitting = False
            self.interrupts.add(r.INT_TX)

    # -- registers

    @property
    def flags(self) -> int:
        """UARTFR (3.3.3). BUSY and the full and empty flags of the transmitter go by what waits for it to be on."""
        rx, unsent = self.receiver, len(self._unsent)
        value = self.modem.lines
        value |= (0 if rx.queue else r.FR_RXFE) | (0 if rx.room else r.FR_RXFF)
        value |= r.FR_BUSY if unsent else r.FR_TXFE
        return value | (r.FR_TXFF if unsent >= rx.depth else 0)

    def peek(self, offset: int) -> int:
        """What reading the register at `offset` gives, without what it does."""
        match offset:
            case r.UARTRSR:
                return self.receiver.status
            case r.UARTFR:
                return self.flags
            case r.UARTRIS:
                return self.interrupts.raised
            case r.UARTMIS:
                return self.mis
        return self._stored.get(offset, 0)

    def read(self, offset: int) -> int:
        """Read the register at `offset`, a multiple of 4."""
        self.transmitted()
        if offset == r.UARTDR:
            self._reading |= bool(self.receiver.queue)
            word = self.receiver.pop()
            self._settle_receiver()
            return word
        value = self.peek(offset)
        if offset in (r.UARTRIS, r.UARTMIS):
            self.interrupts.shown(value)
        return value

    def write(self, offset: int, value: int, mask: int = _ALL) -> None:
        """Write those bits of the register at `offset` that `mask` has; the others of `value` are 0."""
        if offset == r.UARTDR:
            if mask & 0xFF:
                self.transmit(bytes([value & 0xFF]))
            return
        self.transmitted()
        if offset == r.UARTRSR:
            self.receiver.status = 0
        elif offset == r.UARTICR:
            self._clear(value & r.INT_MASK)
        elif offset in self._stored:
            before = self._stored[offset]
            self._stored[offset] = after = (before & ~mask | value) & r.MASKS[offset]
            self._changed(offset, before, after)

    def transmit(self, data: bytes) -> None:
        """A run of writes to UARTDR. What finds the FIFO full is lost."""
        if self.sends:
            self._emit(data)
        else:
            self._unsent += data[: max(self.receiver.depth - len(self._unsent), 0)]

    # -- inside

    def _clear(self, interrupts: int) -> None:
        """Write UARTICR."""
        self.interrupts.clear(interrupts)
        if interrupts & _RECEIVE and not self.listening and not self._reading:
            self._drop()

    def _drop(self) -> None:
        self.dropped[:0] = self.receiver.clear()
        self._cleared = True
        self._settle_receiver()

    def _settle_receiver(self) -> None:
        """Something has been read, or dropped."""
        gone = 0 if self.receiver.triggered else r.INT_RX
        gone |= 0 if self.receiver.queue else r.INT_RX_TIMEOUT
        self.interrupts.withdraw(gone)

    def _arrived(self, triggered: bool) -> None:
        """Something has come. `triggered`: the receiver had reached its level before."""
        reached = self.receiver.triggered and not triggered
        self.interrupts.add(r.INT_RX_TIMEOUT | (r.INT_RX if reached else 0))

    def _take_break(self) -> bool:
        before = self.receiver.triggered
        taken = self.receiver.take_break()
        if taken:
            self.interrupts.add(r.INT_BREAK)
            self._arrived(before)
        return taken

    def _emit(self, data: bytes) -> None:
        """To the line, or back."""
        self.transmitting = True
        if not self.loopback:
            self.output += data
        elif self._stored[r.UARTCR] & r.CR_RXE:
            for byte in data:
                self._loop_back(byte)

    def _loop_back(self, byte: int) -> None:
        before = self.receiver.triggered
        if self.receiver.loop_back(byte):
            self._arrived(before)
        else:
            self.interrupts.add(r.INT_OVERRUN)

    def _go_on(self) -> None:
        """What waited for the transmitter leaves, if it is on."""
        if self._unsent and self.sends:
            data = bytes(self._unsent)
            self._unsent.clear()
            self._emit(data)

    # -- what a write to a register that is stored does

    def _changed(self, offset: int, before: int, after: int) -> None:
        if offset in _SET_UP and before != after:
            self._reading = False
        match offset:
            case r.UARTIMSC:
                self.listening = bool(after & _RECEIVE)
            case r.UARTIFLS:
                self._set_level(after)
            case r.UARTLCR_H:
                self._set_line(before ^ after, after)
            case r.UARTCR:
                self.interrupts.add(self.modem.write_control(after))
                self._go_on()

    def _set_level(self, ifls: int) -> None:
        before = self.receiver.triggered
        self.receiver.level = _receive_level(ifls)
        if self.receiver.triggered and not before:
            self.interrupts.add(r.INT_RX)
        self._settle_receiver()

    def _set_line(self, changed: int, lcr_h: int) -> None:
        if changed & r.LCR_FIFOS:  # both begin empty
            self.receiver.fifo = bool(lcr_h & r.LCR_FIFOS)
            self._unsent.clear()
            self._drop()
        if changed & lcr_h & r.LCR_BREAK and self.loopback and self._stored[r.UARTCR] & _RECEIVES == _RECEIVES:
            self._take_break()


def _receive_level(ifls: int) -> int:
    return r.LEVELS[ifls >> 3 & 7]
