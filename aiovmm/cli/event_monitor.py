"""`--event-monitor`: what happens, as the reference monitor's JSON objects; each is followed by an empty line.

`vmm` starting, shutdown; `vm` booting, booted, pausing, paused, resuming, resumed, restoring, restored, rebooting,
rebooted, shutdown, deleted;
`guest` panic; `virtio-device` activated, reset. What it has no name for has the source `aiovmm` and our own, as with `--json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from aiovmm.cli.events import event_as_dict, open_events
from aiovmm.cli.record_writer import RecordWriter
from aiovmm.config import VMConfig
from aiovmm.config.text import split_options, unquote
from aiovmm.errors import ConfigError
from aiovmm.events import Subscription
from aiovmm.lifecycle import Event, EventKind

__all__ = ["EventMonitor", "open_monitor"]

_OPTION = "--event-monitor"
_NAMES: dict[EventKind, tuple[tuple[str, str], ...]] = {
    EventKind.STARTED: (("vm", "booted"),),
    EventKind.PAUSED: (("vm", "pausing"), ("vm", "paused")),
    EventKind.RESUMED: (("vm", "resuming"), ("vm", "resumed")),
    EventKind.RESTORED: (("vm", "restored"),),
    EventKind.REBOOTED: (("vm", "rebooting"), ("vm", "rebooted")),
    EventKind.DEVICE_ACTIVATED: (("virtio-device", "activated"),),
    EventKind.DEVICE_RESET: (("virtio-device", "reset"),),
    EventKind.PANICKED: (("guest", "panic"),),
    EventKind.STOPPED: (("aiovmm", "stopped"), ("vm", "shutdown")),
}
_OF_EVERY_EVENT = ("event", "vm", "time")

Properties = dict[str, str] | None


def open_monitor(text: str, config: VMConfig) -> int:
    """A descriptor for `path=FILE` or `fd=FD`. Raises ConfigError and HostError."""
    values = {key: unquote(value or "") for key, value in split_options(_OPTION, text).items() if value != ""}
    if len(values) != 1 or not values.keys() <= {"path", "fd"} or not (value := next(iter(values.values()))):
        many = "two places" if values.keys() == {"path", "fd"} else "no place"
        raise ConfigError(_OPTION, f"{text!r} names {many}", "say path=FILE, or fd=FD for one that was opened")
    if "fd" in values and not (value.isascii() and value.isdecimal()):
        raise ConfigError(f"{_OPTION}.fd", f"{value!r} is not a number")
    if "path" in values and value.isdecimal():
        value = f"./{value}"
    return open_events(value, config, _OPTION)


class EventMonitor:
    """Writes them to `fd`; `tell` what the VM itself has no event for."""

    def __init__(self, fd: int) -> None:
        self._writer = RecordWriter(fd, lost=self._lost)
        self._start = time.monotonic_ns()

    def tell(self, source: str, event: str, properties: Properties = None) -> None:
        """One object, now or soon, or never; then another tells how many were lost."""
        self._writer.write(self._object(source, event, properties))

    def _lost(self, count: int) -> bytes:
        return self._object("aiovmm", "lost", {"events": str(count)})

    def _object(self, source: str, event: str, properties: Properties) -> bytes:
        seconds, nanos = divmod(time.monotonic_ns() - self._start, 1_000_000_000)
        row = {
            "timestamp": {"secs": seconds, "nanos": nanos},
            "source": source,
            "event": event,
            "properties": properties,
        }
        return json.dumps(row, indent=2).encode() + b"\n\n"

    async def follow(self, events: Subscription[Event]) -> None:
        """All that the VM tells, until its last event."""
        async for event in events:
            for source, name, properties in _objects(event):
                self.tell(source, name, properties)

    async def finish(self) -> None:
        """All that was told is written, if its storage or its reader takes it."""
        await self._writer.finish()


def _objects(event: Event) -> Iterator[tuple[str, str, Properties]]:
    for source, name in _NAMES.get(event.kind, (("aiovmm", event.kind.value),)):
        yield source, name, _properties(event, source)


def _properties(event: Event, source: str) -> Properties:
    if source == "guest":
        return {"event": "panic"}
    if source == "virtio-device":
        return {"id": event.device or ""}
    row: dict[str, Any] = event_as_dict(event) if source == "aiovmm" else {}
    return {key: str(value) for key, value in row.items() if key not in _OF_EVERY_EVENT} or None
