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
from collections.abc import Callable, Iterator
from contextvars import Context
from types import FrameType
from typing import Any, Protocol

from aiovmm.errors import printable
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.tasks import SERVED
from aiovmm.runtime.threads import Thread, name_this_thread

__all__ = ["BLOCKED", "Lateness", "Watchdog", "Watched", "lateness", "unwatch", "watch"]

BLOCKED = 0.5
"""Seconds in which the loop must have given a sign."""

_INTERVAL = 0.25
_BLAMED = 100
_SLICE = 0.05  # seconds until a thread that waits for a sign notices that it is to end

_dogs: dict[
    asyncio.AbstractEventLoop, Watchdog
] = {}  # by loop, as long as a guest runs on it: all its guests share one


class Watched(Protocol):
    """A VM, as the watchdog sees it."""

    @property
    def name(self) -> str:
        """As people know it."""

    def device_at(self, frame: FrameType) -> str | None:
        """The id of the device whose code runs in `frame`. Called in another thread."""

    def id_of(self, device: object) -> str | None:
        """The id of that device, if it is plugged in here. Called in another thread."""

    def device_slow(self, device: str, detail: str) -> None:
        """It has kept the loop. Called on the loop, when it is free again."""

    def loop_closed(self) -> None:
        """The loop was closed, and the VM is on it. Called in another thread."""


@dataclass(frozen=True)
class _Suspect:
    """Who has the loop: one `step` of a task, callback or access is the same for as long as it is not done."""

    step: tuple[str, int]
    who: str
    frames: list[FrameType]  # the innermost first
    vm: Watched | None = None
    device: str = ""


class Lateness:
    """How late the loop has given its signs, in seconds, and who kept it for long. Written and read on the loop."""

    def __init__(self) -> None:
        self.signs = 0
        self.total = self.most = self.last = 0.0
        self.blamed: dict[str, int] = {}

    def sign(self, asked: float, answered: Callable[[], None]) -> None:
        """The loop's sign."""
        self.last = late = time.monotonic() - asked
        self.signs += 1
        self.total += late
        self.most = max(self.most, late)
        answered()

    def blame(self, who: str) -> None:
        """It has kept the loop. Names are not the guest's, but there may be many: of those beyond a hundred all are one."""
        if who not in self.blamed and len(self.blamed) >= _BLAMED:
            who = "others"
        self.blamed[who] = self.blamed.get(who, 0) + 1


class Watchdog:
    """See the module. Told is what one step has kept for `blocked` seconds: where many take their turns, each is innocent."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, blocked: float = BLOCKED) -> None:
        self.watched: dict[int, Watched] = {}
        self.lateness = Lateness()
        self._loop = loop
        self._blocked = blocked
        self._of, self._native = threading.get_ident(), threading.get_native_id()
        self._closing = threading.Event()
        self._thread = Thread(self._run, name="aiovmm watchdog")
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
                self._loop.call_soon_threadsafe(self.lateness.sign, time.monotonic(), answered.set)
            except RuntimeError:
                self._loop_closed()
                return
            self._await(answered)

    def _loop_closed(self) -> None:
        _dogs.pop(self._loop, None)
        for vm in list(self.watched.values()):
            vm.loop_closed()

    def _await(self, answered: threading.Event) -> None:
        """Until the sign is there. `close`, on the loop, waits for us: its end ends this too."""
        suspect, since, waited, told = None, 0.0, 0.0, False
        while not answered.wait(_SLICE) and not self._closing.is_set():
            now, before = time.monotonic(), suspect
            suspect = None if told else self._suspect()
            if suspect is None or before is None or suspect.step != before.step:
                since, waited = now, _waited(self._native)
            elif now - since >= self._blocked:
                told = _waited(self._native) - waited < (now - since) / 2
                if told:
                    self._tell(suspect)
                since, waited = now, _waited(self._native)

    def _suspect(self) -> _Suspect | None:
        """Who has the loop. None: it waits, or nobody can tell."""
        task = asyncio.current_task(self._loop)
        innermost = sys._current_frames().get(self._of)
        frames = list(_outwards(innermost))
        vms = list(self.watched.values())
        for frame in frames:
            for vm in vms:
                if (device := vm.device_at(frame)) is not None:
                    return _Suspect(("frame", id(frame)), f"{vm.name}: {device}", frames, vm, device)
        handle = next((f.f_locals.get("self") for f in frames if f.f_code is asyncio.Handle._run.__code__), None)
        if task is None and handle is None:
            return None
        context = handle._context if task is None and handle is not None else _context(task)
        who = f"task {task.get_name()!r}" if task is not None else "a callback"
        step = ("task", id(task)) if task is not None else ("handle", id(handle))
        served = context.get(SERVED) if context is not None else None
        owner = served() if served is not None else None
        for vm in vms if owner is not None else ():
            if (device := vm.id_of(owner)) is not None:
                return _Suspect(step, f"{vm.name}: {device}", frames, vm, device)
        return _Suspect(step, who, frames)

    def _tell(self, suspect: _Suspect) -> None:
        innermost = suspect.frames[0]
        where = f"{innermost.f_code.co_filename}:{innermost.f_lineno} in {innermost.f_code.co_name}"
        detail = f"keeps the event loop for over {self._blocked:g} s, and with it every guest: {where}"
        stack = "".join(traceback.format_stack(innermost, 6))
        logging.getLogger("aiovmm").warning("%s: %s\n%s", printable(suspect.who), detail, stack)
        self._loop.call_soon_threadsafe(self.lateness.blame, suspect.who)
        if suspect.vm is not None:
            self._loop.call_soon_threadsafe(suspect.vm.device_slow, suspect.device, detail)


def watch(loop: asyncio.AbstractEventLoop, vm: Watched) -> None:
    """Watch over the loop as long as `vm` is on it. To be called on the loop."""
    dog = _dogs.get(loop) or _dogs.setdefault(loop, Watchdog(loop))
    dog.watched[id(vm)] = vm


def lateness(loop: asyncio.AbstractEventLoop) -> Lateness | None:
    """Of a loop on which guests run."""
    dog = _dogs.get(loop)
    return dog.lateness if dog is not None else None


def unwatch(loop: asyncio.AbstractEventLoop, vm: Watched) -> None:
    """No more. The last ends the thread. Idempotent."""
    dog = _dogs.get(loop)
    if dog is None:
        return
    dog.watched.pop(id(vm), None)
    if not dog.watched:
        del _dogs[loop]
        dog.close()


def _context(task: asyncio.Task[Any] | None) -> Context | None:
    """Of a task, which Python tells since 3.12."""
    if (told := getattr(task, "get_context", None)) is not None:
        context: Context = told()
        return context
    return next((held for held in gc.get_referents(task) if isinstance(held, Context)), None)


def _waited(thread: int) -> float:
    """Seconds that a thread which could run was not given a processor (proc(5), schedstat). Then it is the host that is slow."""
    try:
        with open(f"/proc/self/task/{thread}/schedstat") as stat:
            return int(stat.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
