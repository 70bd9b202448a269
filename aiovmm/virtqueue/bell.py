"""Kicks: eventfds that the driver's notifications signal, one for a few queues of a device.

Which queue was kicked an eventfd does not say, and it need not: a driver publishes a chain before it kicks, and whoever asks for
kicks looks at his ring after that. So of the queues that wait all whose rings have chains have been kicked or are about to be,
and one that does not wait needs no kick. A few, because each kick looks at the rings of all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from aiovmm.native import lib

__all__ = ["QUEUES_A_BELL", "Bell", "distinct"]

QUEUES_A_BELL = 4
"""A look at a ring takes a tenth of what a kick does. A network card has four queues to two pairs, a disk to four processors."""


class Rung(Protocol):
    """What is needed of a queue."""

    def due(self) -> bool:
        """Whether it waits, and what it waits for is in its ring."""

    def kicked(self) -> None:
        """It was kicked."""


class Bell:
    """A non-blocking eventfd, which stays the caller's, and the queues that listen to it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._queues: tuple[Rung, ...] = ()  # another one, when it changes: whoever is served may end others
        self._loop: asyncio.AbstractEventLoop | None = None

    def join(self, queue: Rung) -> None:
        """Kicks are `queue`'s, too. With the first the loop begins to look."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self.fd, self._rung)
        self._queues += (queue,)

    def leave(self, queue: Rung) -> None:
        """No more. With the last the loop looks no longer: a guest that goes on kicking wakes nobody."""
        self._queues = tuple(other for other in self._queues if other is not queue)
        if not self._queues and self._loop is not None:
            self._loop.remove_reader(self.fd)
            self._loop = None

    def _rung(self) -> None:
        if lib.avmm_event_take(self.fd) <= 0:  # woken for nothing
            return
        queues = self._queues
        if len(queues) == 1:
            queues[0].kicked()
            return
        for queue in queues:
            if queue.due():
                queue.kicked()


def distinct(queues: int, make: Callable[[], int]) -> list[int]:
    """A kick eventfd for each queue of a device; `make` makes one for a few of them."""
    fds: list[int] = []
    for index in range(queues):
        fds.append(fds[-1] if index % QUEUES_A_BELL else make())
    return fds
