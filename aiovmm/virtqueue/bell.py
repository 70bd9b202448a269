"""Kicks: eventfds that the driver's notifications signal, one for a few queues of a device.

Which queue was kicked an eventfd does not say, and it need not: a driver publishes a chain before it kicks, and whoever asks for
kicks looks at his ring after that. So of the queues that wait all whose rings have chains have been kicked or are about to be,
and one that does not wait needs no kick. A few, because each kick looks at the rings of all of them.

A kick is a turn of its VM's (runtime/turns.py). One that finds nothing in any ring was for nothing; drivers give one now and
then, when the device was quicker than they. Who gives them without end is listened to once in `REST` seconds, until there is
something in his rings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from aiovmm.native import lib
from aiovmm.runtime.turns import Job

__all__ = ["BURST", "QUEUES_A_BELL", "REST", "Bell", "distinct"]

BURST = 256
"""Kicks for nothing that a bell hears at once; each that was for something makes up for one, and so do `REST` seconds."""

REST = 0.005
"""Seconds for which it does not listen then. So of those who kick for nothing each has 200 a second, a thousandth of the loop."""

QUEUES_A_BELL = 4
"""A look at a ring takes a tenth of what a kick does. A network card has four queues to two pairs, a disk to four processors."""


class Rung(Protocol):
    """What is needed of a queue."""

    def due(self) -> bool:
        """Whether it waits, and what it waits for is in its ring."""

    def kicked(self) -> bool:
        """It was kicked. True: it has woken a coroutine, whose turn is still to come."""


class Bell:
    """A non-blocking eventfd, which stays the caller's, and the queues that listen to it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._queues: tuple[Rung, ...] = ()  # another one, when it changes: whoever is served may end others
        self._loop: asyncio.AbstractEventLoop | None = None
        self._job: Job | None = None
        self._patience = float(BURST)
        self._tried = 0.0  # when it was for nothing
        self._rest: asyncio.TimerHandle | None = None

    def join(self, queue: Rung) -> None:
        """Kicks are `queue`'s, too. With the first the loop begins to look."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._job = Job(self._rung)
            self._loop.add_reader(self.fd, self._job.ready)
        self._queues += (queue,)

    def leave(self, queue: Rung) -> None:
        """No more. With the last the loop looks no longer: a guest that goes on kicking wakes nobody."""
        self._queues = tuple(other for other in self._queues if other is not queue)
        if not self._queues and self._loop is not None:
            self._loop.remove_reader(self.fd)
            self._loop = None
            if self._job is not None:
                self._job.close()
                self._job = None
            if self._rest is not None:
                self._rest.cancel()
                self._rest = None

    def _rung(self) -> None:
        if lib.avmm_event_take(self.fd) <= 0:  # woken for nothing
            return
        if self._ring():
            self._patience = min(self._patience + 1, BURST)
        elif self._loop is not None:
            now = self._loop.time()
            self._patience = min(self._patience + (now - self._tried) / REST, BURST) - 1
            self._tried = now
            if self._patience < 0:
                self._loop.remove_reader(self.fd)
                self._rest = self._loop.call_later(REST, self._rested)

    def _ring(self) -> bool:
        """Tell those who wait for what is in their rings; whether there are any."""
        rung = False
        for queue in self._queues:
            if queue.due():
                rung = True
                if queue.kicked() and self._job is not None:
                    self._job.turns.woke(self._job.account)
        return rung

    def _rested(self) -> None:
        """What was kicked meanwhile is still in the eventfd."""
        self._rest = None
        if self._loop is not None and self._job is not None:
            self._loop.add_reader(self.fd, self._job.ready)


def distinct(queues: int, make: Callable[[], int]) -> list[int]:
    """A kick eventfd for each queue of a device; `make` makes one for a few of them."""
    fds: list[int] = []
    for index in range(queues):
        fds.append(fds[-1] if index % QUEUES_A_BELL else make())
    return fds
