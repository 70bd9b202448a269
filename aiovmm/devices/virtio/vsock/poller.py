"""Readiness of many sockets through one epoll of ours, whose descriptor is the only one that the event loop watches.

Edge-triggered: a connection that cannot be served now (no credit, no room on the ring) is not reported again and again, and
neither needs its interest changed, which would be two system calls whenever that happens. Room to write is reported only
while there is something to write: else whatever a reader takes would wake the loop.

The epoll is made for the first connection; a guest that has none costs no descriptor but that of its listener.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

__all__ = ["ENDING", "GONE", "IN", "OUT", "Poller"]

ENDING = select.EPOLLRDHUP | select.EPOLLPRI
IN, OUT = select.EPOLLIN | ENDING, select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR
_EVENTS = 16  # handled before the loop gets a turn: each may be 64 KiB on their way

Handler = Callable[[int], None]


class Poller:
    """`listen` and `begin` after `open`, `watch` once `begin` has said yes. Handlers must not raise."""

    def __init__(self) -> None:
        self._after: Callable[[], None] | None = None  # while it is open
        self._epoll: select.epoll | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: set[int] = set()
        self._handlers: dict[int, Handler] = {}
        self._fresh: set[int] | None = None  # watched since the events at hand were fetched

    def open(self, after: Callable[[], None]) -> None:
        """Before anything else, in the running loop. `after` is called when a batch of events has been handled, until `close`."""
        self._loop = asyncio.get_running_loop()
        self._after = after

    def begin(self) -> bool:
        """Whether connections can be watched; not if the process has no descriptor left for that, or while this is not open."""
        if self._epoll is None and self._loop is not None:
            try:
                self._epoll = select.epoll()
            except OSError:
                return False
            self._loop.add_reader(self._epoll.fileno(), self._dispatch)
        return self._epoll is not None

    def close(self) -> None:
        """Idempotent. The sockets are their owners'."""
        for fd in tuple(self._listeners):
            self.forget(fd)
        loop, self._loop = self._loop, None
        self._after = None
        if self._epoll is not None and loop is not None:
            loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
            self._handlers.clear()

    def listen(self, fd: int, handler: Handler) -> None:
        """Call `handler(IN)` as long as the listener has clients."""
        assert self._loop is not None
        self._listeners.add(fd)
        self._loop.add_reader(fd, self._heard, handler)

    def _heard(self, handler: Handler) -> None:
        handler(IN)
        self._end_batch()

    def watch(self, fd: int, handler: Handler) -> None:
        """Call `handler(events)`, at first with what is so already."""
        assert self._epoll is not None
        self._epoll.register(fd, IN | select.EPOLLET)
        self._handlers[fd] = handler
        if self._fresh is not None:
            self._fresh.add(fd)

    def want_room(self, fd: int, wanted: bool) -> None:
        """Also report OUT of a watched fd, now if it is so already, or no more."""
        if self._epoll is not None and fd in self._handlers:
            self._epoll.modify(fd, (IN | OUT if wanted else IN) | select.EPOLLET)

    def forget(self, fd: int) -> None:
        """Before it is closed. Idempotent."""
        if fd in self._listeners and self._loop is not None:
            self._listeners.discard(fd)
            self._loop.remove_reader(fd)
        if self._handlers.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)

    def _dispatch(self) -> None:
        if self._epoll is None:
            return
        self._fresh = set()
        try:
            for fd, events in self._epoll.poll(0, _EVENTS):
                handler = self._handlers.get(fd)
                # A fresh one may have the number of one that was closed meanwhile: the event is not its own.
                if handler is not None and fd not in self._fresh:
                    handler(events)
        finally:
            self._fresh = None
        self._end_batch()

    def _end_batch(self) -> None:
        if self._after is not None:
            self._after()
