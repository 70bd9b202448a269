"""Registers of the 16550A UART and their bits (National Semiconductor PC16550D data sheet, June 1995, section 8)."""

from __future__ import annotations

__all__ = [
    "FCR_CLEAR_RX",
    "FCR_CLEAR_TX",
    "FCR_ENABLE",
    "FIFO_SIZE",
    "IER_MASK",
    "IER_MODEM",
    "IER_RX_DATA",
    "IER_RX_LINE",
    "IER_TX_EMPTY",
    "IIR_FIFO",
    "IIR_MODEM",
    "IIR_NONE",
    "IIR_RX_DATA",
    "IIR_RX_LINE",
    "IIR_RX_TIMEOUT",
    "IIR_TX_EMPTY",
    "LCR_DLAB",
    "LSR_BREAK",
    "LSR_DATA_READY",
    "LSR_ERRORS",
    "LSR_FIFO_ERROR",
    "LSR_OVERRUN",
    "LSR_TX_IDLE",
    "MCR_DTR",
    "MCR_LOOP",
    "MCR_MASK",
    "MCR_OUT1",
    "MCR_OUT2",
    "MCR_RTS",
    "MSR_CTS",
    "MSR_DCD",
    "MSR_DSR",
    "MSR_LINES",
    "MSR_RI",
    "REGISTERS",
    "RX_TRIGGER",
]

REGISTERS = 8
"""Size of the register file in bytes. 0 RBR/THR/DLL, 1 IER/DLM, 2 IIR/FCR, 3 LCR, 4 MCR, 5 LSR, 6 MSR, 7 SCR."""

FIFO_SIZE = 16

IER_RX_DATA = 0x01
IER_TX_EMPTY = 0x02
IER_RX_LINE = 0x04
IER_MODEM = 0x08
IER_MASK = 0x0F

# The low four bits of IIR, highest priority first (8.5, table IV).
IIR_RX_LINE = 0x06
IIR_RX_DATA = 0x04
IIR_RX_TIMEOUT = 0x0C
IIR_TX_EMPTY = 0x02
IIR_MODEM = 0x00
IIR_NONE = 0x01
IIR_FIFO = 0xC0  # both bits are set while FCR0 is

FCR_ENABLE = 0x01
FCR_CLEAR_RX = 0x02
FCR_CLEAR_TX = 0x04
RX_TRIGGER = (1, 4, 8, 14)  # bytes, by FCR[7:6]

LCR_DLAB = 0x80

MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08
MCR_LOOP = 0x10
MCR_MASK = 0x1F

LSR_DATA_READY = 0x01
LSR_OVERRUN = 0x02
LSR_BREAK = 0x10
LSR_ERRORS = 0x1E  # overrun, parity, framing, break: cleared by reading the LSR
LSR_TX_IDLE = 0x60  # THRE and TEMT
LSR_FIFO_ERROR = 0x80

MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80
MSR_LINES = 0xF0
