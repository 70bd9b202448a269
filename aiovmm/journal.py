"""What a VM tells the world: its events, and the same in the log."""

from __future__ import annotations

import time
from collections import defaultdict

from aiovmm.events import EventStream, Subscription
from aiovmm.lifecycle import Event, EventKind, ExitStatus
from aiovmm.log import Log
from aiovmm.quota import SECONDS_EACH, Quota

__all__ = ["Journal"]


class Journal:
    """Of one VM. Times are seconds since the epoch."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stream = EventStream()
        self._quotas: defaultdict[str, Quota] = defaultdict(Quota)  # by device: of errors that are told
        self._log = Log(vm=name)

    def emit(
        self, kind: EventKind, detail: str = "", *, device: str | None = None, status: ExitStatus | None = None
    ) -> None:
        """Something happened."""
        self._log.debug(kind.value, detail=detail)
        self._stream.emit(Event(kind, self._name, time.time(), detail, device, status))

    def device_error(self, device: str, error: BaseException) -> None:
        """A device broke. A guest can have that happen as fast as it likes, so it is told within a Quota for each device."""
        quota = self._quotas[device]
        untold = quota.take(time.monotonic())
        if untold is None:
            return
        text = str(error)
        if untold:
            text += f"; {untold} more before it were not told"
        if quota.spent:
            text += f"; of further errors of this device one is told in {SECONDS_EACH:g} s"
        self._log.warning("device failed", device=device, error=text, kind=type(error).__name__)
        self.emit(EventKind.DEVICE_ERROR, text, device=device)

    def powered_on(self, kind: EventKind) -> None:
        """The guest runs its first instruction: started, or rebooted."""
        self.emit(kind)

    def end(self, status: ExitStatus) -> None:
        """The last event."""
        self.emit(EventKind.STOPPED, status.detail, status=status)
        self._stream.end()

    def subscribe(self, *, from_start: bool) -> Subscription:
        """See VM.events."""
        return self._stream.subscribe(from_start=from_start)
