"""Threads of the process's that make calls which block, for whoever asks, and then wait for the next: to start a thread takes
longer than most such calls, and the event loop would wait for that.

There are as many as were ever busy at the same time, and no limit: a call that blocks for long (a file on a server that is gone)
holds up nobody else's. Who has had nothing to do for `IDLE` seconds ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from aiovmm.runtime.threads import Thread, name_this_thread

__all__ = ["NAME", "at_rest", "run"]

IDLE = 2.0
NAME = "aiovmm worker"

_lock = threading.Lock()
_resting = threading.Lock()
_idle: list[
    _Hand
] = []  # who became so last is at the end, and is asked first: its caches are warm, and the others may go


at_rest: list[Callable[[], object]] = []
"""Called by threads that end for want of work, one at a time: what is better done when nobody waits for anything. What gives True
is called again after as long."""

Work = Callable[[], Callable[[], None]]


def run(name: str, work: Work) -> None:
    """Have `work` called in a thread that is called `name` meanwhile, and what it gives once the thread is free for others: to
    tell that it is done. Neither may raise anything. Raises RuntimeError if no thread can be had."""
    with _lock:
        hand = _idle.pop() if _idle else None
    if hand is None:
        hand = _Hand()
        hand.start()
    hand.give(name, work)


class _Hand(Thread):
    def __init__(self) -> None:
        super().__init__(name=NAME)
        self._task = ""
        self._work: Work | None = None
        self._given = threading.Lock()  # taken while there is none
        self._given.acquire()

    def give(self, name: str, work: Work) -> None:
        self._task, self._work = name, work
        self._given.release()

    def run(self) -> None:
        while self._wait():
            work, self._work = self._work, None
            assert work is not None, "it was given"
            name_this_thread(self._task)
            tell = work()
            self.name = NAME
            with _lock:
                _idle.append(self)
            tell()
            del work, tell  # what they refer to need not wait for the next one
        if _resting.acquire(blocking=False):  # else somebody is at it, and looks again if need be
            try:
                for call in at_rest:
                    while call():
                        time.sleep(IDLE)
            finally:
                _resting.release()

    def _wait(self) -> bool:
        """Whether there is work; if not, nobody will give it any."""
        if self._given.acquire(timeout=IDLE):
            return True
        with _lock:
            if self in _idle:
                _idle.remove(self)
                return False
        self._given.acquire()  # it has been chosen just now
        return True


def _alone() -> None:
    """In a forked child, which has none of the threads, and a copy of the lock as it was."""
    global _lock, _resting
    _lock, _resting = threading.Lock(), threading.Lock()
    _idle.clear()


os.register_at_fork(after_in_child=_alone)
