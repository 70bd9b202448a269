"""`--json`: the events of a VM as lines of JSON, on a stream of their own if one is named."""

from __future__ import annotations

import fcntl
import json
import os
import time
from typing import Any

from aiovmm.cli.record_writer import RecordWriter
from aiovmm.config import VMConfig
from aiovmm.errors import ConfigError
from aiovmm.events import Subscription
from aiovmm.lifecycle import Event
from aiovmm.runtime.stdio import was_given

__all__ = ["event_as_dict", "open_events", "print_events"]


def event_as_dict(event: Event) -> dict[str, Any]:
    """An event as plain data for JSON."""
    row: dict[str, Any] = {"event": event.kind.value, "vm": event.vm, "time": event.time}
    if event.detail:
        row["detail"] = event.detail
    if event.device:
        row["device"] = event.device
    if event.error:
        row["error"] = type(event.error).__name__
    if isinstance(event.error, OSError) and event.error.errno:
        row["errno"] = event.error.errno
    if event.status:
        row["reason"] = event.status.reason.value
    return row


def open_events(place: str, config: VMConfig, option: str = "--json") -> int:
    """A descriptor for `place`: a number is one that the caller has given us, anything else a file, which is none that the guest
    of `config` is made of. Raises ConfigError and HostError."""
    if not place:
        raise ConfigError("--json", "is no file", "say --json=FILE, or --json for standard error")
    if not (place.isascii() and place.isdecimal()):
        from aiovmm.config.outputs import refuse_input
        from aiovmm.runtime.output_file import open_output_file

        refuse_input(config, option, place)
        return open_output_file(place, option, "open the file of events")
    fd = int(place) if len(place) < 10 else -1
    if not was_given(fd) or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        hint = "the shell opens it by `3>FILE`; a file of that name is ./" + place
        raise ConfigError(option, f"no descriptor {place[:20]} for writing was given to this program", hint)
    return fd


async def print_events(events: Subscription[Event], fd: int, vm: str) -> None:
    """One line an event of `vm`, until the last. Where some were lost, one that says how many."""

    def lost(count: int) -> bytes:
        return _line({"event": "lost", "vm": vm, "time": time.time(), "detail": f"{count} events"})

    writer = RecordWriter(fd, lost=lost)
    async for event in events:
        writer.write(_line(event_as_dict(event)))
    await writer.finish()


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"
