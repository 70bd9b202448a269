"""What a VM tells the world: its events, and the same in the log."""

from __future__ import annotations

import time
from collections import defaultdict

from aiovmm.errors import AiovmmError, readable
from aiovmm.events import EventStream, Subscription
from aiovmm.lifecycle import Event, EventKind, ExitStatus
from aiovmm.runtime.home import HomeLoop
from aiovmm.runtime.log import Log
from aiovmm.runtime.quota import SECONDS_EACH, Quota
from aiovmm.runtime.traces import let_go

__all__ = ["Journal"]


class Journal:
    """Of one VM. Times are seconds since the epoch."""

    def __init__(self, name: str, home: HomeLoop | None = None) -> None:
        self._name = name
        self._stream: EventStream[Event] = EventStream(home)
        self._quotas: defaultdict[str, Quota] = defaultdict(Quota)  # by device: of errors that are told
        self._log = Log(vm=name)

    def emit(
        self,
        kind: EventKind,
        detail: str = "",
        *,
        device: str | None = None,
        status: ExitStatus | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Something happened."""
        self._log.debug(kind.value, detail=detail, **({"device": device} if device else {}))
        self._stream.emit(Event(kind, self._name, time.time(), detail, device, status, error))

    def device_error(self, device: str, error: BaseException) -> None:
        """A device, or what serves it on the host, has failed. A guest can have that happen as fast as it likes, so it is told
        within a Quota for each device."""
        quota = self._quotas[device]
        untold = quota.take(time.monotonic())
        if untold is None:
            return
        text = _words(error)
        if untold:
            text += f"; {untold} more before it were not told"
        if quota.spent:
            text += f"; of further errors of this device one is told in {SECONDS_EACH:g} s"
        let_go(error)
        bug = not isinstance(error, AiovmmError | OSError)  # the traceback is of use to who wrote the device
        traced = {"exc_info": error} if bug else {}
        self._log.warning("device failed", device=device, error=text, kind=type(error).__name__, **traced)
        self.emit(EventKind.DEVICE_ERROR, text, device=device, error=error)

    def remark(self, text: str) -> None:
        """Something that was asked for has less of an effect than it seems to have."""
        self._log.warning(text)

    def device_driven(self, device: str, there: bool) -> None:
        """The guest's driver has taken a device over, or let go of it, which it can do as fast as it likes."""
        if self._quotas[f"{device} driver"].take(time.monotonic()) is not None:
            self.emit(EventKind.DEVICE_ACTIVATED if there else EventKind.DEVICE_RESET, device=device)

    def end(self, status: ExitStatus) -> None:
        """The last event."""
        self.emit(EventKind.STOPPED, status.detail, status=status, error=status.error)
        self._stream.end()

    def subscribe(self, *, from_start: bool) -> Subscription[Event]:
        """See VM.events."""
        return self._stream.subscribe(from_start=from_start)


def _words(error: BaseException) -> str:
    """What an error says, in a line, and its kind where that is half of the message (KeyError: 'x')."""
    text = str(error) if isinstance(error, AiovmmError) else readable(str(error))
    if isinstance(error, AiovmmError | OSError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
