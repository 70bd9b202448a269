"""When input is kept off a device: while its driver may be setting it up.

On a wire what comes meanwhile is lost. Here it is not: who writes to a console is promised that all arrives, and what a pipe
gives, or a person types, before the guest has booted is meant for it. No device is told that its driver is ready; so input waits
for a sign of it, which each device knows for itself, or until the driver has left the device alone for some time.
"""

from __future__ import annotations

from collections.abc import Callable

from aiovmm.devices.timer import CallLater, Timer

__all__ = ["InputHold"]


class InputHold:
    """What is given to `wait` or `end_in` is called when the driver was quiet for `quiet` seconds, or then; without `call_later`
    nothing is ever kept."""

    def __init__(self, call_later: CallLater | None, quiet: float) -> None:
        self.active = False
        self._call_later = call_later
        self._quiet = quiet
        self._timer: Timer | None = None
        self._release: Callable[[], None] | None = None  # while there is a timer: it is the device's, which knows us
        self._ending = False  # `end_in` has set it

    @property
    def waits(self) -> bool:
        """Whether there is input that it is kept from."""
        return self._timer is not None

    def begin(self) -> None:
        """The driver has begun to set the device up."""
        self.active = self._call_later is not None

    def wait(self, release: Callable[[], None]) -> None:
        """There is input to be kept."""
        if self._timer is None:
            self._set_timer(self._quiet, release)

    def touched(self) -> None:
        """The driver has accessed the device."""
        if self._release is not None and not self._ending:
            self._set_timer(self._quiet, self._release)

    def end(self) -> None:
        """The driver takes input. Idempotent."""
        self.active = False
        self._stop_timer()

    def end_in(self, seconds: float, release: Callable[[], None]) -> None:
        """The driver will take input that long from the first such call, whatever it does."""
        if self.active and not self._ending:
            self._set_timer(seconds, release)
            self._ending = True

    def close(self) -> None:
        """Set no timer again. Idempotent."""
        self._call_later = None
        self.end()

    def _over(self) -> None:
        release = self._release
        self.end()
        if release is not None:
            release()

    def _set_timer(self, seconds: float, release: Callable[[], None]) -> None:
        self._stop_timer()
        if self._call_later is not None:
            self._release = release
            self._timer = self._call_later(seconds, self._over)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._release = None
        self._ending = False
