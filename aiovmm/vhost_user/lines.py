"""The eventfds between guest and back end that are ours to make: bridges for interrupt lines without one, and error eventfds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from aiovmm.errors import HostError
from aiovmm.irq import IrqLine
from aiovmm.native import lib

__all__ = ["EventReader", "call_fd"]


class EventReader:
    """An eventfd that calls `heard` on the loop whenever somebody signals it. Raises HostError if there are too many fds.

    Its open file is the back end's as well, which may make it blocking, or take what was signalled before we do."""

    def __init__(self, heard: Callable[[], None]) -> None:
        try:
            self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as exc:
            raise HostError("making an eventfd", exc.errno or 0) from exc
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.fd, self._readable)

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            self._loop.remove_reader(self.fd)
            os.close(self.fd)
            self.fd = -1

    def _readable(self) -> None:
        if lib.avmm_event_take(self.fd) > 0:
            self._heard()


def call_fd(line: IrqLine, bridges: list[EventReader]) -> int | None:
    """The eventfd that stands for `line`: its own, or a bridge to `pulse`; None where nobody listens (the driver polls)."""
    if getattr(line, "silent", False):
        return None
    fd: int | None = getattr(line, "fd", None)
    if fd is not None:
        return fd
    bridge = EventReader(line.pulse)
    bridges.append(bridge)
    return bridge.fd
