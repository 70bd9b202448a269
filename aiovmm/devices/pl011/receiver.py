"""The receiver of a PL011: its FIFO or single holding register, with the errors of each character. Pure.

Source: DDI 0183, sections 3.3.1 (UARTDR), 3.3.2 (UARTRSR/UARTECR), 3.3.9 (UARTIFLS) and 2.4 (FIFO bits 11 to 0).
"""

from __future__ import annotations

from aiovmm.devices.pl011.registers import DR_BREAK, DR_OVERRUN, FIFO_DEPTH

__all__ = ["WORDS", "Receiver"]

_NO_DATA = 1 << 16  # it is the guest's own, or a break
_WORD = 0xFFF
WORDS = _NO_DATA | _WORD
"""Bits that those in the queue can have."""
_ERRORS = 0x7  # framing, parity, break: of the character that UARTDR gave last


class Receiver:
    """Characters wait in `queue`, oldest first, each with its error bits as UARTDR has them. `status` is UARTRSR; `overrun`
    stands until a character is taken that can carry it."""

    def __init__(
        self, queue: tuple[int, ...] = (), *, fifo: bool = False, level: int = 8, overrun: bool = False, status: int = 0
    ) -> None:
        self.queue = list(queue)
        self.fifo = fifo
        self.level = level  # bytes, while the FIFO is on
        self.overrun = overrun
        self.status = status

    @property
    def depth(self) -> int:
        """Bytes that it holds at most."""
        return FIFO_DEPTH if self.fifo else 1

    @property
    def room(self) -> int:
        """Bytes that can come without an overrun."""
        return self.depth - len(self.queue)

    @property
    def triggered(self) -> bool:
        """It holds as many as the receive interrupt is for."""
        return len(self.queue) >= (self.level if self.fifo else 1)

    def take(self, data: bytes) -> int:
        """Bytes from the line, as many as there is room for; returns how many that was."""
        taken = data[: self.room]
        for byte in taken:
            self._put(byte)
        return len(taken)

    def take_break(self) -> bool:
        """A zero byte with the break error; False when there is no room for it."""
        if self.room:
            self._put(_NO_DATA | DR_BREAK)
            return True
        return False

    def loop_back(self, byte: int) -> bool:
        """A byte from the own transmitter. False when it is lost: what is in the FIFO stays valid (3.3.1, OE)."""
        if self.room:
            self._put(_NO_DATA | byte)
            return True
        self.overrun = True
        self.status |= DR_OVERRUN >> 8
        return False

    def clear(self) -> bytes:
        """Drop all; what of it was data from the line."""
        dropped = bytes(word for word in self.queue if word <= 0xFF)
        self.queue.clear()
        return dropped

    def pop(self) -> int:
        """Read UARTDR; 0 when it is empty. UARTRSR then has the errors of what was read."""
        if not self.queue:
            return 0
        word = self.queue.pop(0) & _WORD
        self.status = self.status & ~_ERRORS | word >> 8 & _ERRORS
        return word

    def _put(self, word: int) -> None:
        if self.overrun:
            word |= DR_OVERRUN
            self.overrun = False
        self.queue.append(word)
