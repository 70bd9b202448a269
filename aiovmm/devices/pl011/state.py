"""What a PL011 remembers: after reset, and as firmware hands it over."""

from __future__ import annotations

from aiovmm.devices.pl011 import registers as r
from aiovmm.runtime.dataclass import dataclass

__all__ = ["HANDED_OVER", "Pl011State"]


@dataclass(frozen=True)
class Pl011State:
    """All that a UART remembers; the defaults are its state after reset, with a terminal on the line."""

    cr: int = r.CR_RESET
    lcr_h: int = 0
    ibrd: int = 0
    fbrd: int = 0
    ifls: int = r.IFLS_RESET
    imsc: int = 0
    ilpr: int = 0
    dmacr: int = 0
    ris: int = 0
    unseen: int = 0  # of `ris`: what the guest has not been shown
    lines: int = r.FR_CTS | r.FR_DSR | r.FR_DCD  # modem inputs, as UARTFR has them
    received: tuple[int, ...] = ()  # oldest first, as UARTDR gives them
    status: int = 0  # UARTRSR
    overrun: bool = False  # not told by a character yet
    unsent: bytes = b""  # waits until the transmitter is on
    dropped: bytes = b""
    reading: bool = False  # the driver has read a character since it has set the port up last
    transmitting: bool = False  # UARTDR was written and `transmitted` not called yet


HANDED_OVER = Pl011State(
    cr=r.CR_RESET | r.CR_UARTEN, lcr_h=r.LCR_WORD_8 | r.LCR_FIFOS, ibrd=r.BAUD_INTEGER, fbrd=r.BAUD_FRACTION
)
"""As firmware leaves it to a kernel, whose early console only writes: enabled, 115,200 baud of 24 MHz, 8 bits, FIFOs on."""
