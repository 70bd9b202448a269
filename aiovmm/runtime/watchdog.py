"""Who blocks the event loop: a thread asks it for a sign now and then, and looks where it is when none comes.

It costs an idle loop four wake-ups a second, and a busy one nothing. Unlike asyncio's debug mode it tells while the loop is still
blocked, by which VM's device, and where in its code: by an object of the device's in a frame, or by the context that tasks and
callbacks inherit from the device's `run`. What is no device's is told with the name of its task. One for each loop on which
guests run.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextvars import Context
from types import FrameType
from typing import Any, Protocol

from aiovmm.runtime.tasks import SERVED
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

    def id_of(self, device: object) -> str | None:
        """The id of that device, if it is plugged in here. Called in another thread."""

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
        task = asyncio.current_task(self._loop)
        innermost = sys._current_frames().get(self._of)
        if innermost is None:
            return
        frames = list(_outwards(innermost))
        context = _context(task, frames)
        vm, device = self._device(frames, context)
        if vm is not None and device is not None:
            self._tell(f"{vm.name}: {device}", innermost)
            self._loop.call_soon_threadsafe(vm.device_slow, device, self._detail(innermost))
        elif task is not None:
            self._tell(f"task {task.get_name()!r}", innermost)
        elif context is not None:
            self._tell("a callback", innermost)

    def _device(self, frames: list[FrameType], context: Context | None) -> tuple[Watched | None, str | None]:
        """Whose it is."""
        vms = list(self.watched.values())
        for frame in frames:
            for vm in vms:
                if (device := vm.device_at(frame)) is not None:
                    return vm, device
        served = context.get(SERVED) if context is not None else None
        device_served = served() if served is not None else None
        if device_served is not None:
            for vm in vms:
                if (device := vm.id_of(device_served)) is not None:
                    return vm, device
        return None, None

    def _detail(self, innermost: FrameType) -> str:
        where = f"{innermost.f_code.co_filename}:{innermost.f_lineno} in {innermost.f_code.co_name}"
        return f"keeps the event loop for over {self._blocked:g} s, and with it every guest: {where}"

    def _tell(self, who: str, innermost: FrameType) -> None:
        stack = "".join(traceback.format_stack(innermost, 6))
        logging.getLogger("aiovmm").warning("%s: %s\n%s", who, self._detail(innermost), stack)


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


def _context(task: asyncio.Task[Any] | None, frames: list[FrameType]) -> Context | None:
    """What the loop runs there: a task's context (which Python tells since 3.12), or a callback's, where the loop is asyncio's.
    None: it waits, and was not given the processor."""
    if task is not None:
        told = getattr(task, "get_context", None)
        return told() if told is not None else next((c for c in gc.get_referents(task) if isinstance(c, Context)), None)
    handles = (frame.f_locals.get("self") for frame in frames if frame.f_code is asyncio.Handle._run.__code__)
    return next((handle._context for handle in handles if handle is not None), None)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
