"""The access sequences of Linux's PL011 driver (drivers/tty/serial/amba-pl011.c, 6.1), played by a guest on a UART.

All accesses are of 16 bits, but those of the early console.
"""

from __future__ import annotations

from typing import Protocol

DR, RSR, FR, ILPR, IBRD, FBRD, LCR_H = 0x00, 0x04, 0x18, 0x20, 0x24, 0x28, 0x2C
CR, IFLS, IMSC, RIS, MIS, ICR, DMACR = 0x30, 0x34, 0x38, 0x3C, 0x40, 0x44, 0x48

BUSY, RXFE, TXFF = 0x08, 0x10, 0x20
UARTEN, LBE, TXE, RXE, DTR, RTS, CTSEN = 0x0001, 0x0080, 0x0100, 0x0200, 0x0400, 0x0800, 0x8000
FEN, WLEN_8 = 0x10, 0x60
RXI, TXI, RTI, ERRORS = 0x10, 0x20, 0x40, 0x780
MODEM = 0x0F
DR_ERRORS = 0xF00


class Port(Protocol):
    """Accesses to the register file."""

    def read(self, offset: int, size: int = 0) -> int: ...
    def write(self, offset: int, value: int, size: int = 0) -> None: ...


def early_console(port: Port, data: bytes) -> None:
    """pl011_early_write: the UART is as firmware left it. It waits for ever if that is off."""
    for byte in data:
        polls = 0
        while port.read(FR, 4) & TXFF:
            polls += 1
            assert polls < 100, "the early console hangs"
        port.write(DR, byte, 1)
        while port.read(FR, 4) & BUSY:
            polls += 1
            assert polls < 100, "the early console hangs"


def probe(port: Port) -> None:
    """pl011_setup_port: nothing interrupts before it is opened."""
    port.write(IMSC, 0)
    port.write(ICR, 0xFFFF)


def set_termios(port: Port) -> None:
    old_cr = port.read(CR) & ~CTSEN
    port.write(FBRD, 1)
    port.write(IBRD, 13)
    port.write(LCR_H, WLEN_8 | FEN)
    port.write(CR, old_cr)


def console_write(port: Port, data: bytes) -> None:
    """pl011_console_write."""
    old_cr = port.read(CR)
    port.write(CR, old_cr & ~CTSEN | UARTEN | TXE)
    for byte in data:
        while port.read(FR) & TXFF:
            raise AssertionError("the transmitter is never full")
        port.write(DR, byte)
    while port.read(FR) & BUSY:
        raise AssertionError("the transmitter is never busy")
    port.write(CR, old_cr)


class Tty:
    """The port while it is open, and pl011_int."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.im = 0
        self.transmit = bytearray()
        self.received = bytearray()
        self.errors: list[int] = []
        self.drained = bytearray()  # what opening threw away
        self.passes = 0

    def startup(self) -> None:
        """pl011_hwinit, pl011_allocate_irq, pl011_startup and pl011_enable_interrupts; then set_termios and set_mctrl."""
        port = self.port
        port.write(ICR, ERRORS | RTI | RXI)
        self.im = port.read(IMSC)
        port.write(IMSC, RTI | RXI)
        port.write(IMSC, self.im)
        port.write(IFLS, 0x12)
        port.write(CR, port.read(CR) & (RTS | DTR) | UARTEN | RXE | TXE)
        port.read(FR)
        port.write(ICR, RTI | RXI)
        for _ in range(32):
            if port.read(FR) & RXFE:
                break
            self.drained.append(port.read(DR) & 0xFF)
        self.im = RTI | RXI
        port.write(IMSC, self.im)
        set_termios(port)
        port.write(CR, port.read(CR) | RTS | DTR)

    def shutdown(self) -> None:
        """pl011_shutdown."""
        port = self.port
        self.im = 0
        port.write(IMSC, 0)
        port.write(ICR, 0xFFFF)
        port.write(CR, port.read(CR) & (RTS | DTR) | UARTEN | TXE)
        port.write(LCR_H, port.read(LCR_H) & ~(0x01 | FEN))

    def write(self, data: bytes) -> None:
        """pl011_start_tx: by programmed I/O, as much as there is room for."""
        self.transmit += data
        if self._send(16 << 10, from_irq=False):
            self.im |= TXI
            self.port.write(IMSC, self.im)

    def start_by_interrupt(self, data: bytes) -> None:
        """As a driver does that takes the transmit interrupt for all but the first characters."""
        self.transmit += data
        self._send(8, from_irq=True)
        if self.transmit:
            self.im |= TXI
            self.port.write(IMSC, self.im)

    def interrupt(self) -> bool:
        """pl011_int; whether it was for this port."""
        handled = False
        while status := self.port.read(RIS) & self.im:
            handled = True
            self.passes += 1
            assert self.passes < 1_000_000
            self.port.write(ICR, status & ~(TXI | RTI | RXI))
            if status & (RTI | RXI):
                self._receive()
            if status & MODEM:
                self.port.read(FR)
            if status & TXI:
                self._send(8, from_irq=True)
        return handled

    def _receive(self) -> None:
        for _ in range(256):
            if self.port.read(FR) & RXFE:
                break
            word = self.port.read(DR)
            if word & DR_ERRORS:
                self.errors.append(word)
            else:
                self.received.append(word)

    def _send(self, count: int, *, from_irq: bool) -> bool:
        """pl011_tx_chars: whether the interrupt is still needed."""
        while self.transmit and count:
            if not from_irq and self.port.read(FR) & TXFF:
                break
            self.port.write(DR, self.transmit.pop(0))
            count -= 1
        if self.transmit:
            return True
        self.im &= ~TXI
        self.port.write(IMSC, self.im)
        return False
