"""Registers of the PL011 UART and their bits (ARM PrimeCell UART (PL011) Technical Reference Manual, DDI 0183, chapter 3)."""

from __future__ import annotations

__all__ = [
    "BAUD_FRACTION",
    "BAUD_INTEGER",
    "CR_CTSEN",
    "CR_DTR",
    "CR_LBE",
    "CR_MASK",
    "CR_OUT1",
    "CR_OUT2",
    "CR_RESET",
    "CR_RTS",
    "CR_RXE",
    "CR_TXE",
    "CR_UARTEN",
    "DR_BREAK",
    "DR_OVERRUN",
    "FIFO_DEPTH",
    "FR_BUSY",
    "FR_CTS",
    "FR_DCD",
    "FR_DSR",
    "FR_MODEM",
    "FR_RI",
    "FR_RXFE",
    "FR_RXFF",
    "FR_TXFE",
    "FR_TXFF",
    "IFLS_RESET",
    "INT_BREAK",
    "INT_CTS",
    "INT_DCD",
    "INT_DSR",
    "INT_FRAMING",
    "INT_MASK",
    "INT_OVERRUN",
    "INT_PARITY",
    "INT_RI",
    "INT_RX",
    "INT_RX_TIMEOUT",
    "INT_TX",
    "LCR_BREAK",
    "LCR_FIFOS",
    "LCR_WORD_8",
    "LEVELS",
    "MASKS",
    "UARTCR",
    "UARTDMACR",
    "UARTDR",
    "UARTFBRD",
    "UARTFR",
    "UARTIBRD",
    "UARTICR",
    "UARTIFLS",
    "UARTILPR",
    "UARTIMSC",
    "UARTLCR_H",
    "UARTMIS",
    "UARTRIS",
    "UARTRSR",
]

UARTDR = 0x00
UARTRSR = 0x04  # receive status; written it is UARTECR, error clear
UARTFR = 0x18
UARTILPR = 0x20
UARTIBRD = 0x24
UARTFBRD = 0x28
UARTLCR_H = 0x2C
UARTCR = 0x30
UARTIFLS = 0x34
UARTIMSC = 0x38
UARTRIS = 0x3C
UARTMIS = 0x40
UARTICR = 0x44
UARTDMACR = 0x48

FIFO_DEPTH = 16  # 32 from revision r1p5 on

# A word of the receive FIFO, and UARTDR as it reads: the byte and its errors. UARTRSR has the same four at its bottom.
DR_BREAK, DR_OVERRUN = 0x400, 0x800  # 0x100 is a framing error, 0x200 parity: no line of ours has them

FR_CTS, FR_DSR, FR_DCD, FR_RI = 0x001, 0x002, 0x004, 0x100
FR_MODEM = FR_CTS | FR_DSR | FR_DCD | FR_RI
FR_BUSY, FR_RXFE, FR_TXFF, FR_RXFF, FR_TXFE = 0x08, 0x10, 0x20, 0x40, 0x80

LCR_BREAK, LCR_FIFOS, LCR_WORD_8 = 0x01, 0x10, 0x60

CR_UARTEN, CR_LBE, CR_TXE, CR_RXE = 0x0001, 0x0080, 0x0100, 0x0200
CR_DTR, CR_RTS, CR_OUT1, CR_OUT2, CR_CTSEN = 0x0400, 0x0800, 0x1000, 0x2000, 0x8000
CR_MASK = 0xFF87  # bits 6 to 3 are reserved
CR_RESET = CR_TXE | CR_RXE
IFLS_RESET = 0x12

LEVELS = (2, 4, 8, 12, 14, 14, 14, 14)
"""Bytes in a FIFO of 16, by the three bits of UARTIFLS: an eighth, a quarter, half, three quarters, seven eighths, reserved."""

# UARTIMSC, UARTRIS, UARTMIS and UARTICR.
INT_RI, INT_CTS, INT_DCD, INT_DSR = 0x001, 0x002, 0x004, 0x008
INT_RX, INT_TX, INT_RX_TIMEOUT = 0x010, 0x020, 0x040
INT_FRAMING, INT_PARITY, INT_BREAK, INT_OVERRUN = 0x080, 0x100, 0x200, 0x400
INT_MASK = 0x7FF

BAUD_INTEGER, BAUD_FRACTION = 13, 1  # 115,200 baud of a clock of 24 MHz

MASKS = {
    UARTILPR: 0xFF,
    UARTIBRD: 0xFFFF,
    UARTFBRD: 0x3F,
    UARTLCR_H: 0xFF,
    UARTCR: CR_MASK,
    UARTIFLS: 0x3F,
    UARTIMSC: INT_MASK,
    UARTDMACR: 0x07,
}
"""Registers that read as they were written, by the bits that they have."""
