"""What a VM tells the world: its events, and the same in the log."""

from __future__ import annotations

import time
from collections import Counter

from aiovmm.events import EventStream, Subscription
from aiovmm.lifecycle import Event, EventKind, ExitStatus
from aiovmm.log import Log

__all__ = ["Journal"]

ERRORS_TOLD = 32
"""Errors of one device that are told, for each time the guest is powered on: a guest may cause them as fast as it likes."""


class Journal:
    """Of one VM. Times are seconds since the epoch."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stream = EventStream()
        self._errors: Counter[str] = Counter()
        self._log = Log(vm=name)

    def emit(
        self, kind: EventKind, detail: str = "", *, device: str | None = None, status: ExitStatus | None = None
    ) -> None:
        """Something happened."""
        self._log.debug(kind.value, detail=detail)
        self._stream.emit(Event(kind, self._name, time.time(), detail, device, status))

    def device_error(self, device: str, error: BaseException) -> None:
        """A device broke. After ERRORS_TOLD of one device, it is said that more are not told."""
        self._errors[device] += 1
        count = self._errors[device]
        if count > ERRORS_TOLD:
            return
        last = "; no more errors of this device are told until the guest is reset" if count == ERRORS_TOLD else ""
        self._log.warning("device failed", device=device, error=f"{error}{last}", kind=type(error).__name__)
        self.emit(EventKind.DEVICE_ERROR, f"{error}{last}", device=device)

    def powered_on(self, kind: EventKind) -> None:
        """The guest runs its first instruction: started, or rebooted."""
        self._errors.clear()
        self.emit(kind)

    def end(self, status: ExitStatus) -> None:
        """The last event."""
        self.emit(EventKind.STOPPED, status.detail, status=status)
        self._stream.end()

    def subscribe(self, *, from_start: bool) -> Subscription:
        """See VM.events."""
        return self._stream.subscribe(from_start=from_start)
