"""The receiver of a 16550A: its FIFO (or single holding register), trigger level and errors. Pure.

Source: National Semiconductor PC16550D data sheet, June 1995, sections 8.4 (FIFO control) and 8.3 (line status).
"""

from __future__ import annotations

from aiovmm.devices.serial.uart_registers import FIFO_SIZE, LSR_BREAK, LSR_DATA_READY, LSR_FIFO_ERROR, LSR_OVERRUN

__all__ = ["Receiver"]


_NO_DATA = 1 << 16  # it is the guest's own, or a break


class Receiver:
    """Bytes wait in `queue`, oldest first, each with its LSR error bits shifted left by 8."""

    def __init__(
        self, queue: tuple[int, ...] = (), *, fifo: bool = False, trigger: int = 1, overrun: bool = False
    ) -> None:
        self.queue = list(queue)
        self.fifo = fifo
        self.trigger = trigger  # bytes
        self.overrun = overrun

    @property
    def room(self) -> int:
        """Bytes that can come without an overrun."""
        return (FIFO_SIZE if self.fifo else 1) - len(self.queue)

    @property
    def triggered(self) -> bool:
        """The data interrupt is due, rather than the character timeout."""
        return not self.fifo or len(self.queue) >= self.trigger

    @property
    def status(self) -> int:
        """The receiver's part of LSR. Errors other than overrun belong to the byte at the top of the FIFO."""
        value = LSR_OVERRUN if self.overrun else 0
        if self.queue:
            value |= LSR_DATA_READY | self.queue[0] >> 8 & 0xFF
            if self.fifo and any(byte & 0xFF00 for byte in self.queue):
                value |= LSR_FIFO_ERROR
        return value

    def take(self, data: bytes) -> int:
        """Bytes from the line, as many as there is room for; returns how many that was."""
        taken = data[: self.room]
        self.queue.extend(taken)
        return len(taken)

    def take_break(self) -> bool:
        """A zero byte with the break error; False when there is no room for it."""
        if not self.room:
            return False
        self.queue.append(_NO_DATA | LSR_BREAK << 8)
        return True

    def loop_back(self, byte: int) -> None:
        """A byte from the own transmitter, which may overrun: a full FIFO keeps what it has, a single register does not."""
        if self.room:
            self.queue.append(byte | _NO_DATA)
            return
        self.overrun = True
        if not self.fifo:
            self.queue[0] = byte | _NO_DATA

    def clear(self) -> bytes:
        """Drop all; what of it was data from the line."""
        dropped = bytes(byte for byte in self.queue if byte <= 0xFF)
        self.queue.clear()
        return dropped

    def pop(self) -> int:
        """Read RBR; 0 when it is empty."""
        return self.queue.pop(0) & 0xFF if self.queue else 0

    def forget_errors(self) -> None:
        """LSR has been read."""
        self.overrun = False
        if self.queue:
            self.queue[0] &= ~0xFF00
