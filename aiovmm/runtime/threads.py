"""Threads of Python's that say who they are and that may fail to begin.

Their names, as the system's tools see them: Python gives its own to the system only since 3.14, and then their beginnings; what
tells the threads of a VM apart is the end: they are called "VM: what it does".

Where memory is short, the system may have a thread for us and Python no stack for it: it ends before its first step, and
`threading.Thread.start` waits for that step for ever (CPython's gh-140746), on the event loop, and every guest with it. What is
done about it rests on how that waits, which was the same from CPython 3.11 to 3.14; where it does otherwise, it is left alone.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial

__all__ = ["Thread", "name_this_thread", "system_name"]

_ROOM = 15  # bytes of a name (TASK_COMM_LEN)
_IS_KNOWN = {"_started", "wait", "_bootstrap"} <= {
    *getattr(getattr(threading.Thread.start, "__code__", None), "co_names", ())
} and isinstance(getattr(threading, "_limbo", None), dict)
"""Whether `start` waits in Python for `_started`, which the thread sets in `_bootstrap`, and has it in `_limbo` until then."""

_LOOK = 0.01  # seconds until who waits for a thread to begin looks whether there still is one


class Thread(threading.Thread):
    """Whose `start` raises RuntimeError in this case, too: as for a thread that the system refuses. Daemons unless `daemon` says
    otherwise: a call that blocks for ever does not keep the process.

    The thread holds what it is to run until its end. So once that is gone without having begun, it will not.
    """

    def __init__(self, target: Callable[[], object] | None = None, *, name: str, daemon: bool = True) -> None:
        super().__init__(target=target, name=name, daemon=daemon)
        if _IS_KNOWN:
            self._started = _Beginning()

    @property
    def _bootstrap(self) -> Callable[[], None]:
        """For the system's thread, each time another object."""
        held = partial(super()._bootstrap)  # type: ignore[misc]
        if _IS_KNOWN:
            self._started.held = weakref.ref(held)
        return held

    def start(self) -> None:
        """See the class."""
        try:
            super().start()
        except RuntimeError:
            if _IS_KNOWN:
                threading._limbo.pop(self, None)  # type: ignore[attr-defined]
            raise


class _Beginning(threading.Event):
    """That a thread has begun."""

    held: Callable[[], object] = staticmethod(lambda: None)

    def wait(self, timeout: float | None = None) -> bool:
        while not super().wait(_LOOK if timeout is None else timeout):
            if timeout is not None:
                return False
            if self.held() is None and not self.is_set():
                raise RuntimeError("can't start new thread: there is no memory that it could begin with")
        return True


def system_name(name: str) -> bytes:
    """What there is room for: what a thread does first, then as much of its VM's name as fits before it."""
    owner, _, what = name.rpartition(": ")
    owner, what = (part.encode(errors="replace").decode() for part in (owner, what))  # a path's bytes need not be UTF-8
    room = max(_ROOM - 1 - len(what.encode()), 0)
    short = f"{owner.encode()[:room].decode(errors='ignore')} {what}".lstrip()
    return short.encode()[:_ROOM].decode(errors="ignore").encode()


def name_this_thread(name: str = "") -> None:
    """Have it called so, by Python and by the system; or by the system as it is by Python already."""
    thread = threading.current_thread()
    if name:
        thread.name = name
    set_system_name(system_name(thread.name))


def _write_name(name: bytes) -> None:
    with suppress(OSError):
        comm = os.open("/proc/thread-self/comm", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(comm, name)
        finally:
            os.close(comm)


set_system_name: Callable[[bytes], None] = _write_name
"""Of the calling thread; `native` puts what is faster here, once it is there."""
