"""Which of the port's interrupts are held back, and why none is lost by it.

The loop is often faster than the guest, and would find THR empty again after each byte of a burst of 16. A guest in its
interrupt handler sees that in IIR and needs no interrupt for it. So that one interrupt, and no other, is held back from a guest
that was interrupted and has not been shown since that nothing is pending; it is dropped when the guest is shown its cause, and
given when the guest is shown that nothing is pending, when anything else happens, or after a millisecond, for a driver that
does not look again before it leaves its handler.
"""

from __future__ import annotations

from aiovmm.devices.serial.uart_registers import IIR_NONE
from aiovmm.devices.timer import CallLater, Timer
from aiovmm.irq import IrqLine

__all__ = ["InterruptPacer"]

_PATIENCE = 0.001  # seconds


class InterruptPacer:
    """Stands between a UART's INTR and its line. Without `call_later` nothing is held back."""

    def __init__(self, irq: IrqLine, call_later: CallLater | None) -> None:
        self._irq = irq
        self._call_later = call_later
        self._timer: Timer | None = None
        self._handling = False  # the guest was interrupted, and has not been shown since that nothing is pending
        self._held_back = False

    def shown(self, iir: int) -> None:
        """The guest has read IIR as `iir`. `update` follows at the end of the batch."""
        if iir & IIR_NONE:
            self._handling = False

    def update(self, level: bool, edge: bool, tx_edge: bool, *, now: bool = False) -> None:
        """INTR is at `level` and has risen since the last call: because THR is empty again (`tx_edge`), or for another reason
        (`edge`). `now`: something has happened that the guest does not expect, so what is held back is given with it."""
        self._held_back = level and (self._held_back or tx_edge)
        if edge or (self._held_back and (now or not self._handling or self._call_later is None)):
            self._pulse()
        elif self._held_back and self._timer is None and self._call_later is not None:
            self._timer = self._call_later(_PATIENCE, self.give)

    def give(self) -> None:
        """Out of patience: what is held back is given."""
        self._stop_timer()
        if self._held_back:
            self._pulse()

    def reset(self) -> None:
        """Start afresh, with the guest not running."""
        self._held_back = self._handling = False

    def close(self) -> None:
        """Forget the timer, and set none again. Idempotent."""
        self._call_later = None
        self._stop_timer()

    def _pulse(self) -> None:
        self._held_back = False
        self._handling = True
        self._irq.pulse()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
