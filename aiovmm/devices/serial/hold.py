"""When input is kept off a port: while its driver may be setting it up.

A driver that sets a port up clears the receiver's FIFO, and then reads RBR once or twice unasked ("for luck", as Linux says, in
autoconfig and in startup). On a wire what comes meanwhile is lost. Here it is not: who writes to a console is promised that all
arrives, and what a pipe gives, or a person types, before the guest has booted is meant for it. So bytes that a clear has taken
unread come again, and nothing comes after a clear until the driver enables the receive interrupt, or, for one that polls, has
left the port alone for `QUIET`. LSR tells nothing: a console that prints reads it as one that waits for input does.
"""

from __future__ import annotations

from collections.abc import Callable

from aiovmm.devices.timer import CallLater, Timer

__all__ = ["QUIET", "InputHold"]

QUIET = 0.25
"""Seconds. A set-up takes some tens of accesses, a few of which come to the loop; the slowest host is to be quicker than this."""


class InputHold:
    """`release` is called when the time is over; without `call_later` nothing is ever kept."""

    def __init__(self, call_later: CallLater | None, release: Callable[[], None]) -> None:
        self.active = False
        self._call_later = call_later
        self._release = release
        self._timer: Timer | None = None

    def begin(self) -> None:
        """The FIFO was cleared."""
        self.active = self._call_later is not None

    def wait(self) -> None:
        """There is input to be kept."""
        if self._timer is None and self._call_later is not None:
            self._timer = self._call_later(QUIET, self._over)

    def touched(self) -> None:
        """The driver has accessed the port."""
        if self._timer is not None:
            self._stop_timer()
            self.wait()

    def end(self) -> None:
        """The driver takes input. Idempotent."""
        self.active = False
        self._stop_timer()

    def close(self) -> None:
        """Set no timer again. Idempotent."""
        self._call_later = None
        self.end()

    def _over(self) -> None:
        self.end()
        self._release()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
