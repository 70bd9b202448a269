"""The 16550A as a pure state machine: register accesses and received bytes go in, output bytes and interrupt edges come out.

Theory of operation. The transmitter is infinitely fast, so the guest always finds THR empty and never waits: LSR shows THRE
and TEMT for ever. What a write to THR does take is an instant in which the THRE interrupt is withdrawn; it ends with
`transmitted()`, and then the interrupt stands again. The owner calls that once for a run of writes, so that a run costs one
interrupt. The receiver takes no more than its FIFO holds, so it overruns in loopback only, where the guest fills it itself.

The character timeout needs no clock: whoever calls `receive` hands over all it has, so fewer bytes than the trigger level
mean that the line has gone quiet, and the timeout interrupt is due at once instead of four character times later.

INTR is the OR of all enabled causes, and reaches the interrupt controller while OUT2 is set, as on a PC's board: `interrupt` is
what comes out there. In loopback the bit gates as well, as in the chips that have UART and gate in one.

Source: National Semiconductor PC16550D data sheet, June 1995, section 8; the sections below are its.
"""

from __future__ import annotations

from aiovmm.devices.serial.uart_modem import Modem
from aiovmm.devices.serial.uart_receiver import Receiver
from aiovmm.devices.serial.uart_registers import (
    FCR_CLEAR_RX,
    FCR_CLEAR_TX,
    FCR_ENABLE,
    FIFO_SIZE,
    IER_MASK,
    IER_MODEM,
    IER_RX_DATA,
    IER_RX_LINE,
    IER_TX_EMPTY,
    IIR_FIFO,
    IIR_MODEM,
    IIR_NONE,
    IIR_RX_DATA,
    IIR_RX_LINE,
    IIR_RX_TIMEOUT,
    IIR_TX_EMPTY,
    LCR_DLAB,
    LSR_ERRORS,
    LSR_TX_IDLE,
    MCR_MASK,
    MSR_CTS,
    MSR_DCD,
    MSR_DSR,
    MSR_LINES,
    RX_TRIGGER,
)
from aiovmm.errors import SnapshotError
from aiovmm.runtime.dataclass import dataclass, field_types
from aiovmm.runtime.plain import Fields, State

__all__ = ["Uart16550", "UartState"]


_MASKS = {
    "ier": IER_MASK,
    "lcr": 0xFF,
    "mcr": MCR_MASK,
    "scr": 0xFF,
    "divisor": 0xFFFF,
    "trigger": max(RX_TRIGGER),
    "lines": MSR_LINES,
    "deltas": 0x0F,
}
_DROPPED_LIMIT = 4096


@dataclass(frozen=True)
class UartState:
    """All that a UART remembers; the defaults are its state after reset, at 9600 baud, with a terminal on the line."""

    ier: int = 0
    lcr: int = 0
    mcr: int = 0
    scr: int = 0
    divisor: int = 12
    fifo: bool = False
    trigger: int = 1  # bytes
    lines: int = MSR_CTS | MSR_DSR | MSR_DCD  # modem inputs, as MSR[7:4]
    deltas: int = 0  # MSR[3:0]
    received: tuple[int, ...] = ()  # oldest first; the byte, and its LSR error bits shifted left by 8
    dropped: bytes = b""
    overrun: bool = False
    tx_empty: bool = False  # the THRE interrupt stands
    transmitting: bool = False  # THR was written and `transmitted` not called yet
    interrupt: bool = False  # level of INTR behind the gate

    def save(self) -> State:
        """As plain data."""
        return {**{name: getattr(self, name) for name in field_types(UartState)}, "received": list(self.received)}

    @classmethod
    def read(cls, state: State) -> UartState:
        """What `save` gave. Raises SnapshotError."""
        fields = Fields(state, "serial port")
        numbers = {name: fields.number(name, 0, mask) for name, mask in _MASKS.items()}
        flags = {name: fields.flag(name) for name in ("fifo", "overrun", "tx_empty", "transmitting", "interrupt")}
        received, dropped = fields.numbers("received", low=0, high=0x1FFFF), fields.data("dropped", most=_DROPPED_LIMIT)
        fields.end()
        read = cls(**numbers, **flags, received=tuple(received), dropped=dropped)  # type: ignore[arg-type]
        if read.trigger not in (RX_TRIGGER if read.fifo else (1,)) or len(received) > (FIFO_SIZE if read.fifo else 1):
            raise SnapshotError(f"serial port: {len(received)} bytes have come, with an interrupt at {read.trigger}")
        if read.tx_empty and not read.ier & IER_TX_EMPTY:
            raise SnapshotError("serial port: an interrupt stands that is not enabled")
        return read


class Uart16550:
    """One UART, as `shell.Uart` has it: `output` collects what the guest sent, `dropped` what clearing the receiver took unread
    from the line, `listening` is whether the data interrupt is enabled. Nothing here raises for any access."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.restore(UartState())

    # -- what the owner asks

    def snapshot(self) -> UartState:
        """The whole state, except `output`, which the owner takes first."""
        rx, modem = self.receiver, self.modem
        return UartState(
            ier=self.ier,
            lcr=self.lcr,
            mcr=modem.control,
            scr=self.scr,
            divisor=self.divisor,
            fifo=rx.fifo,
            trigger=rx.trigger,
            lines=modem.inputs,
            deltas=modem.deltas,
            received=tuple(rx.queue),
            dropped=bytes(self.dropped),
            overrun=rx.overrun,
            tx_empty=self.tx_empty,
            transmitting=self.transmitting,
            interrupt=self.interrupt,
        )

    def restore(self, state: UartState) -> None:
        """Put `state` in force. No edge comes of it: an interrupt that was raised before is the controller's to remember."""
        self.ier, self.lcr, self.scr, self.divisor = state.ier, state.lcr, state.scr, state.divisor
        self.listening = bool(state.ier & IER_RX_DATA)
        self.receiver = Receiver(state.received, fifo=state.fifo, trigger=state.trigger, overrun=state.overrun)
        self.modem = Modem(state.mcr, state.lines, state.deltas)
        self.tx_empty, self.transmitting = state.tx_empty, state.transmitting
        self.interrupt = state.interrupt
        self.dropped = bytearray(state.dropped)
        self._edge = self._tx_edge = self._cleared = False

    def take_edge(self) -> bool:
        """Whether INTR has risen since the last call, for any reason but the one of `take_tx_edge`."""
        edge, self._edge = self._edge, False
        return edge

    def take_tx_edge(self) -> bool:
        """Whether INTR has risen since the last call because THR, which the guest had written, is empty again."""
        edge, self._tx_edge = self._tx_edge, False
        return edge

    def take_cleared(self) -> bool:
        """Whether the receiver has been cleared since the last call. What it had from the line is in `dropped`, to come again."""
        cleared, self._cleared = self._cleared, False
        return cleared

    @property
    def dlab(self) -> bool:
        """Offsets 0 and 1 are the divisor latch."""
        return bool(self.lcr & LCR_DLAB)

    @property
    def loopback(self) -> bool:
        """Output goes to the receiver, MCR to the modem status."""
        return self.modem.loopback

    @property
    def room(self) -> int:
        """Bytes that `receive` takes now. In loopback the line is disconnected (8.7, MCR4)."""
        return 0 if self.loopback else self.receiver.room

    @property
    def drained(self) -> bool:
        """All that came has been read."""
        return not self.receiver.queue

    # -- the line

    def receive(self, data: bytes) -> int:
        """Bytes arrive; returns how many were taken, at most `room`. The rest is the caller's to keep."""
        taken = self.receiver.take(data) if self.room else 0
        self._update()
        return taken

    def receive_dropped(self) -> None:
        """What `dropped` has arrives again, as far as there is room."""
        del self.dropped[: self.receive(bytes(self.dropped))]

    def receive_break(self) -> bool:
        """A break arrives: a zero byte with the BI error. False when there is no room for it."""
        taken = bool(self.room) and self.receiver.take_break()
        self._update()
        return taken

    def set_modem_lines(self, lines: int) -> None:
        """The other end drives CTS, DSR, RI and DCD: MSR[7:4]."""
        self.modem.drive(lines)
        self._update()

    def transmitted(self) -> None:
        """THR and the transmitter are empty again; the THRE interrupt comes if it is enabled (8.6, ETBEI)."""
        if not self.transmitting:
            return
        self.transmitting = False
        self.tx_empty = bool(self.ier & IER_TX_EMPTY)
        rises = self.tx_empty and self.modem.out2 and not self.interrupt
        self._tx_edge |= rises
        self.interrupt |= rises

    # -- what registers show, with no side effect

    @property
    def iir(self) -> int:
        """Interrupt identification: the highest of the pending causes (8.5, table IV)."""
        return self._cause() | (IIR_FIFO if self.receiver.fifo else 0)

    @property
    def lsr(self) -> int:
        """Line status: the transmitter is always idle (8.3)."""
        return LSR_TX_IDLE | self.receiver.status

    # -- register accesses

    def read(self, offset: int) -> int:
        """One byte at register `offset` (0 to 7), with the side effects of reading it."""
        self.transmitted()
        value = self._read(offset)
        self._update()
        return value

    def note_iir(self, shown: int) -> None:
        """The guest was shown `shown` as its IIR, perhaps earlier than now.

        Reading it withdraws the THRE interrupt only if that is what was shown. On real hardware INTR fell at that moment, and
        rose again for a cause that came since; here the two may have merged, so the edge is given again if INTR still stands.
        """
        if shown & 0x0F != IIR_TX_EMPTY:
            return
        self.transmitting = False
        self.tx_empty = False
        self._update()
        self._edge |= self.interrupt

    def write(self, offset: int, value: int) -> None:
        """Store one byte at register `offset`. LSR and MSR ignore it (LSR: 'intended for read operations only')."""
        if offset == 0 and not self.dlab:
            self.transmit(value.to_bytes(1, "little"))
            return
        self.transmitted()
        match offset:
            case 0:
                self.divisor = self.divisor & 0xFF00 | value
            case 1:
                self._write_ier(value)
            case 2:
                self._write_fcr(value)
            case 3:
                self.lcr = value
            case 4:
                self.modem.write_control(value)
            case 7:
                self.scr = value
        self._update()

    def transmit(self, data: bytes) -> None:
        """A run of writes to THR: withdraws the THRE interrupt until `transmitted`."""
        self.transmitting = True
        if self.tx_empty:
            self.tx_empty = False
            self._update()
        if not self.loopback:
            self.output += data
            return
        for byte in data:
            self.receiver.loop_back(byte)
        self._update()

    # -- inside

    def _cause(self) -> int:
        ier = self.ier
        if ier & IER_RX_LINE and self.receiver.status & LSR_ERRORS:
            return IIR_RX_LINE
        if ier & IER_RX_DATA and self.receiver.queue:
            return IIR_RX_DATA if self.receiver.triggered else IIR_RX_TIMEOUT
        if self.tx_empty:  # implies that it is enabled
            return IIR_TX_EMPTY
        if ier & IER_MODEM and self.modem.deltas:
            return IIR_MODEM
        return IIR_NONE

    def _update(self) -> None:
        level = self.modem.out2 and self._cause() != IIR_NONE
        self._edge |= level and not self.interrupt
        self.interrupt = level

    def _read(self, offset: int) -> int:
        match offset:
            case 0:
                return self.divisor & 0xFF if self.dlab else self.receiver.pop()
            case 1:
                return self.divisor >> 8 if self.dlab else self.ier
            case 2:
                value = self.iir
                if value & 0x0F == IIR_TX_EMPTY:
                    self.tx_empty = False
                return value
            case 3:
                return self.lcr
            case 4:
                return self.modem.control
            case 5:
                value = self.lsr
                self.receiver.forget_errors()
                return value
            case 6:
                return self.modem.read_status()
            case 7:
                return self.scr
        return 0xFF

    def _write_ier(self, value: int) -> None:
        if self.dlab:
            self.divisor = self.divisor & 0x00FF | value << 8
            return
        enabled = value & ~self.ier
        self.ier = value & IER_MASK
        self.listening = bool(value & IER_RX_DATA)
        if enabled & IER_TX_EMPTY:  # THR is empty, so enabling the interrupt raises it (8.6; Linux tests for it)
            self.tx_empty = True
        elif not value & IER_TX_EMPTY:
            self.tx_empty = False

    def _write_fcr(self, value: int) -> None:
        enable = bool(value & FCR_ENABLE)
        changed = enable != self.receiver.fifo
        self.receiver.fifo = enable
        self.receiver.trigger = RX_TRIGGER[value >> 6] if enable else 1
        # FCR0 must be 1 for the other bits to be taken; a change of it clears both FIFOs (8.4).
        if changed or (enable and value & FCR_CLEAR_RX):
            self.dropped[:0] = self.receiver.clear()
            self._cleared = True
        if changed or (enable and value & FCR_CLEAR_TX):
            self.tx_empty = bool(self.ier & IER_TX_EMPTY)
