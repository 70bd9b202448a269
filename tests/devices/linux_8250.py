"""The access sequences of Linux's 8250 driver (drivers/tty/serial/8250/8250_port.c, 6.1), played by a guest on a UART."""

from __future__ import annotations

from typing import Protocol

RX = TX = DLL = 0
IER = DLM = 1
IIR = FCR = EFR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

DR, THRE, BOTH_EMPTY = 0x01, 0x20, 0x60
THRI, RDI, RLSI = 0x02, 0x01, 0x04
NO_INT = 0x01
LOOP, OUT2, RTS, DTR = 0x10, 0x08, 0x02, 0x01
CONF_MODE_A, CONF_MODE_B = 0x80, 0xBF


class Port(Protocol):
    """Byte accesses to the register file."""

    def read(self, offset: int) -> int: ...
    def write(self, offset: int, value: int) -> None: ...


def read_divisor(port: Port) -> int:
    return port.read(DLL) | port.read(DLM) << 8


def write_divisor(port: Port, value: int) -> None:
    port.write(DLL, value & 0xFF)
    port.write(DLM, value >> 8)


def size_fifo(port: Port) -> int:
    """How many bytes the receiver holds, by loopback."""
    old_lcr = port.read(LCR)
    port.write(LCR, 0)
    old_fcr = port.read(IIR)
    old_mcr = port.read(MCR)
    port.write(FCR, 0x07)
    port.write(MCR, LOOP)
    port.write(LCR, CONF_MODE_A)
    old_divisor = read_divisor(port)
    write_divisor(port, 1)
    port.write(LCR, 0x03)
    for count in range(256):
        port.write(TX, count)
    count = 0
    while port.read(LSR) & DR and count < 256:
        assert port.read(RX) == count
        count += 1
    port.write(FCR, old_fcr)
    port.write(MCR, old_mcr)
    port.write(LCR, CONF_MODE_A)
    write_divisor(port, old_divisor)
    port.write(LCR, old_lcr)
    return count


def clear_fifos(port: Port) -> None:
    port.write(FCR, 0x01)
    port.write(FCR, 0x07)
    port.write(FCR, 0x00)


def autoconfig(port: Port) -> str:
    """Which chip the driver takes this for; 'none' if it finds no UART."""
    scratch = port.read(IER)
    port.write(IER, 0)
    scratch2 = port.read(IER) & 0x0F
    port.write(IER, 0x0F)
    scratch3 = port.read(IER) & 0x0F
    port.write(IER, scratch)
    if scratch2 != 0 or scratch3 != 0x0F:
        return "none"
    save_mcr, save_lcr = port.read(MCR), port.read(LCR)
    port.write(MCR, LOOP | 0x0A)
    status = port.read(MSR) & 0xF0
    port.write(MCR, save_mcr)
    if status != 0x90:
        return "none"
    port.write(LCR, CONF_MODE_B)
    port.write(EFR, 0)
    port.write(LCR, 0)
    port.write(FCR, 0x01)
    chip = {0: "8250", 1: "unknown", 2: "16550"}.get(port.read(IIR) >> 6) or autoconfig_16550a(port)
    port.write(LCR, save_lcr)
    port.write(MCR, save_mcr)
    clear_fifos(port)
    port.read(RX)
    port.write(IER, 0)
    return chip


def autoconfig_16550a(port: Port) -> str:
    port.write(LCR, CONF_MODE_A)
    if port.read(EFR) == 0:
        return "16650"
    port.write(LCR, CONF_MODE_B)
    if port.read(EFR) == 0:
        return "16650V2"
    if is_national(port):
        return "NS16550A"
    port.write(LCR, 0)
    port.write(FCR, 0x21)
    status1 = port.read(IIR) >> 5
    port.write(FCR, 0x01)
    port.write(LCR, CONF_MODE_A)
    port.write(FCR, 0x21)
    status2 = port.read(IIR) >> 5
    port.write(FCR, 0x01)
    port.write(LCR, 0)
    if (status1, status2) == (6, 7):
        return "16750"
    save_ier = port.read(IER)
    port.write(IER, save_ier & ~0x40)
    if not port.read(IER) & 0x40:
        port.write(IER, save_ier | 0x40)
        if port.read(IER) & 0x40:
            return "XScale"
    port.write(IER, save_ier)
    return "U6_16550A" if size_fifo(port) == 64 else "16550A"


def is_national(port: Port) -> bool:
    """The National SuperIO test: does the loop bit of MCR show in bank 2?"""
    port.write(LCR, 0)
    mcr = port.read(MCR)
    port.write(LCR, 0xE0)
    if (port.read(2) ^ mcr) & LOOP:
        return False
    port.write(LCR, 0)
    port.write(MCR, mcr ^ LOOP)
    port.write(LCR, 0xE0)
    exchanged = port.read(2)
    port.write(LCR, 0)
    port.write(MCR, mcr)
    return bool((exchanged ^ mcr) & LOOP)


def startup(port: Port) -> set[str]:
    """serial8250_do_startup and set_termios; returns the bugs that the driver believes the chip has."""
    bugs = set()
    clear_fifos(port)
    for register in (LSR, RX, IIR, MSR):
        port.read(register)
    if port.read(LSR) == 0xFF:
        bugs.add("absent")
    port.write(IER, THRI)
    iir1 = port.read(IIR)
    port.write(IER, 0)
    port.write(IER, THRI)
    iir = port.read(IIR)
    port.write(IER, 0)
    if not iir1 & NO_INT and iir & NO_INT:
        bugs.add("THRE")
    port.write(LCR, 0x03)
    port.write(MCR, OUT2 | RTS | DTR)
    port.write(IER, THRI)
    lsr, iir = port.read(LSR), port.read(IIR)
    port.write(IER, 0)
    if lsr & 0x40 and iir & NO_INT:
        bugs.add("TXEN")
    for register in (LSR, RX, IIR, MSR):
        port.read(register)
    port.write(LCR, CONF_MODE_A | 0x03)
    write_divisor(port, 1)
    port.write(LCR, 0x03)
    port.write(FCR, 0x01)
    port.write(FCR, 0x81)  # trigger level 8
    port.write(MCR, OUT2 | RTS | DTR)
    port.write(IER, RLSI | RDI)
    return bugs


class Tty:
    """The interrupt-driven side: the transmit buffer, and serial8250_interrupt."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.ier = RLSI | RDI
        self.transmit = bytearray()
        self.received = bytearray()
        self.passes = 0

    def write(self, data: bytes) -> None:
        """start_tx."""
        self.transmit += data
        if not self.ier & THRI:
            self.ier |= THRI
            self.port.write(IER, self.ier)

    def interrupt(self) -> bool:
        """Handle until nothing is pending, as for an edge-triggered line; whether there was anything."""
        handled = False
        while not (iir := self.port.read(IIR)) & NO_INT:
            handled = True
            self.passes += 1
            assert self.passes < 1_000_000
            self._handle(iir)
        return handled

    def _handle(self, iir: int) -> None:
        status = self.port.read(LSR)
        if status & DR and iir & 0x04:
            while status & DR:
                self.received.append(self.port.read(RX))
                status = self.port.read(LSR)
        self.port.read(MSR)
        if status & THRE:
            self._send()

    def _send(self) -> None:
        burst, self.transmit = self.transmit[:16], self.transmit[16:]
        for byte in burst:
            self.port.write(TX, byte)
        if not self.transmit and self.ier & THRI:
            self.ier &= ~THRI
            self.port.write(IER, self.ier)
