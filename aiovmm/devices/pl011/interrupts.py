"""The raw interrupts of a PL011, and which of them the guest has been shown. Pure.

Those that come of data are raised earlier than in hardware: the transmitter is infinitely fast, a quiet line is known of at
once, and what is received in the place of what has been read is there at once. In hardware a driver that has just written,
read or looked clears them (UARTICR) before they are due, and gets them afterwards. So a clear takes of them only what the
guest has been shown in UARTRIS or UARTMIS since they rose: one that it has not seen is never lost.

Source: DDI 0183, sections 2.8 (interrupts), 3.3.11 (UARTRIS) and 3.3.13 (UARTICR).
"""

from __future__ import annotations

from aiovmm.devices.pl011.registers import INT_RX, INT_RX_TIMEOUT, INT_TX

__all__ = ["Interrupts"]

_EARLY = INT_TX | INT_RX | INT_RX_TIMEOUT


class Interrupts:
    """`raised` is UARTRIS, `unseen` what of it the guest has not been shown."""

    def __init__(self, raised: int, unseen: int) -> None:
        self.raised, self.unseen = raised, unseen

    def add(self, interrupts: int) -> None:
        """They have a cause, anew."""
        self.raised |= interrupts
        self.unseen |= interrupts & _EARLY

    def withdraw(self, interrupts: int) -> None:
        """They have none any more."""
        self.raised &= ~interrupts
        self.unseen &= ~interrupts

    def clear(self, interrupts: int) -> None:
        """Write UARTICR."""
        self.raised &= ~(interrupts & ~self.unseen)

    def shown(self, status: int) -> None:
        """The guest has read `status` from UARTRIS or UARTMIS."""
        self.unseen &= ~status
