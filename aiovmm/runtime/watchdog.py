"""Who blocks the event loop: a thread asks it for a sign now and then, and looks where it is when none comes.

It costs an idle loop four wake-ups a second, and a busy one nothing. Unlike asyncio's debug mode it tells while the loop is still
blocked, by which VM's device, and where in its code. One for each loop on which guests run.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

from aiovmm.runtime.worker import name_this_thread

__all__ = ["BLOCKED", "Watchdog", "Watched", "unwatch", "watch"]

BLOCKED = 0.5
"""Seconds in which the loop must have given a sign."""

_INTERVAL = 0.25
_SLICE = 0.05  # seconds until a thread that waits for a sign notices that it is to end

_dogs: dict[
    asyncio.AbstractEventLoop, Watchdog
] = {}  # by loop, as long as a guest runs on it: all its guests share one


class Watched(Protocol):
    """A VM, as the watchdog sees it."""

    @property
    def name(self) -> str: ...

    def device_at(self, frame: FrameType) -> str | None:
        """The id of the device whose code runs in `frame`. Called in another thread."""

    def device_slow(self, device: str, detail: str) -> None:
        """It has kept the loop. Called on the loop, when it is free again."""

    def loop_closed(self) -> None:
        """The loop was closed, and the VM is on it. Called in another thread."""


class Watchdog:
    """See the module."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, blocked: float = BLOCKED) -> None:
        self.watched: dict[int, Watched] = {}
        self._loop = loop
        self._blocked = blocked
        self._of = threading.get_ident()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aiovmm watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        name_this_thread()
        while not self._closing.wait(_INTERVAL):
            answered = threading.Event()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:
                self._loop_closed()
                return
            if not self._comes(answered, self._blocked):
                self._look()
                self._comes(answered, None)

    def _loop_closed(self) -> None:
        _dogs.pop(self._loop, None)
        for vm in list(self.watched.values()):
            vm.loop_closed()

    def _comes(self, answered: threading.Event, seconds: float | None) -> bool:
        """Whether the sign is there in that time. `close`, on the loop, waits for us: its end ends this too."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not answered.wait(_SLICE):
            if self._closing.is_set():
                return True
            if deadline is not None and time.monotonic() > deadline:
                return False
        return True

    def _look(self) -> None:
        innermost = sys._current_frames().get(self._of)
        for frame in _outwards(innermost):
            for vm in list(self.watched.values()):
                device = vm.device_at(frame)
                if device is not None and innermost is not None:
                    self._tell(vm, device, innermost)
                    return

    def _tell(self, vm: Watched, device: str, innermost: FrameType) -> None:
        where = f"{innermost.f_code.co_filename}:{innermost.f_lineno} in {innermost.f_code.co_name}"
        detail = f"keeps the event loop for over {self._blocked:g} s, and with it every guest: {where}"
        stack = "".join(traceback.format_stack(innermost, 6))
        logging.getLogger("aiovmm").warning("%s: %s: %s\n%s", vm.name, device, detail, stack)
        self._loop.call_soon_threadsafe(vm.device_slow, device, detail)


def watch(loop: asyncio.AbstractEventLoop, vm: Watched) -> None:
    """Watch over the loop as long as `vm` is on it. To be called on the loop."""
    dog = _dogs.get(loop) or _dogs.setdefault(loop, Watchdog(loop))
    dog.watched[id(vm)] = vm


def unwatch(loop: asyncio.AbstractEventLoop, vm: Watched) -> None:
    """No more. The last ends the thread. Idempotent."""
    dog = _dogs.get(loop)
    if dog is None:
        return
    dog.watched.pop(id(vm), None)
    if not dog.watched:
        del _dogs[loop]
        dog.close()


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
