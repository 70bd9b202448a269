"""Joins the guest's connections to host ends, for as long as the device is open; the rings come and go with the driver.

Nothing here waits. Host ends are made by whoever listens on a port: an `Acceptor` is given the port and a function to call,
now or later, with a connected stream socket, or None to refuse.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from aiovmm.devices.virtio.vsock.connection import Connection, Effect, State
from aiovmm.devices.virtio.vsock.link import Link
from aiovmm.devices.virtio.vsock.muxer import Muxer
from aiovmm.devices.virtio.vsock.packet import HOST_CID, SHUTDOWN_BOTH, STREAM, Header, Op
from aiovmm.devices.virtio.vsock.poller import Poller
from aiovmm.errors import HostError, StateError
from aiovmm.runtime.descriptors import PROCESS
from aiovmm.runtime.event import Event
from aiovmm.virtqueue.batch import Batch

if TYPE_CHECKING:
    from aiovmm.devices.virtio.vsock.endings import Endings

__all__ = ["Acceptor", "HostEnd", "Switch"]

HostEnd = socket.socket


class Accepted(Protocol):
    """To be called once, with the host end (the connection's from then on) or None; `aborted` hears of its abrupt end."""

    def __call__(self, sock: HostEnd | None, aborted: Callable[[OSError], None] = ...) -> None: ...


Acceptor = Callable[[int, Accepted], None]

_CLOSE_PATIENCE = (
    8.0  # seconds for the guest's RST after our SHUTDOWN of both directions (§5.10.6.5); Linux has the same
)


class Switch:
    """See the module."""

    def __init__(self, muxer: Muxer) -> None:
        self.muxer = muxer
        self.poller = Poller()
        self.links: dict[Connection, Link] = {}
        self.listeners: dict[int, Acceptor] = {}
        self.fallback: Acceptor | None = None
        self.live = Event()  # the guest's driver is there
        self._pump: Callable[[], None] | None = None  # the rings', while there are any
        self.offer: Callable[[Link], None] | None = None  # the same: the shortest way from a socket to the guest
        self.share = PROCESS.share()
        """Of this guest. Host ends, and whatever is on its way to be one, are drawn from it: a link gives its own back."""
        self._ends: set[Link] = set()  # with those whose connection is over but who linger
        self._endings: Endings | None = None  # of those, what is yet to be told
        self._timers: dict[Connection, asyncio.TimerHandle] = {}
        self._opened = False

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin, in the running loop."""
        self.poller.open(self._wake)
        self._opened = True

    async def end(self) -> None:
        """End all host ends, in turns, once those ends are told of that have come before. `close` follows."""
        self._opened = False
        if self._endings is not None:
            await self._endings.finished()
        self.drop("the device was closed")
        self._tell([functools.partial(_abort, link, "the device was closed") for link in self._ends])
        if self._endings is not None:
            await self._endings.finished()

    def close(self) -> None:
        """End everything that has not ended yet. Idempotent."""
        self._opened = False
        if self._endings is not None:
            self._endings.finish()
        self.drop("the device was closed")
        for link in list(self._ends):
            _abort(link, "the device was closed")
        if self._endings is not None:
            self._endings.close()
        self.poller.close()
        self.share.close()

    def drop(self, why: str) -> None:
        """The guest is gone, or has forgotten its connections: all host ends see a close. What a host has yet to take of a
        connection that was closed before still reaches it."""
        gone = self.muxer.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        links = [link for connection in gone if (link := self.links.pop(connection, None)) is not None]
        self._tell([functools.partial(_abort, link, why) for link in links])

    def guest_gone(self, why: str) -> None:
        """There is no guest any more. What it has sent reaches the host's ends, and then its end; what was still asked of it has
        failed."""
        self._tell([functools.partial(self._last, link, why) for link in self.links.values()])

    def _tell(self, calls: list[Callable[[], None]]) -> None:
        """That they are at their end: in turns, if they are many."""
        if not calls:
            return
        if self._endings is None:
            from aiovmm.devices.virtio.vsock.endings import Endings  # a guest without connections needs none

            self._endings = Endings()
        self._endings.add(calls)

    def _last(self, link: Link, why: str) -> None:
        connection = link.connection
        if connection.state in (State.REQUESTED, State.PENDING):
            link.failed(ConnectionResetError(errno.ECONNRESET, why))
        if connection.state is not State.CLOSED:  # meanwhile
            effect = connection.receive(_last_word(connection))
            self._carry_out(Effect.ABORTED if effect is Effect.NONE else effect, link)

    def join_rings(self, pump: Callable[[], None] | None, offer: Callable[[Link], None] | None) -> None:
        """Rings have come, or have gone: `pump` is called whenever there may be something to send to the guest, `offer` is their
        short way to it."""
        self._pump, self.offer = pump, offer
        for link in self.links.values():
            link.offer = offer or link.changed

    def _wake(self) -> None:
        if self._pump is not None:
            self._pump()

    # -- from the guest ------------------------------------------------------------------------------------------------

    def receive(self, header: Header, batch: Batch, first: int, count: int) -> bool:
        """A packet of the guest, or several that were joined to one, in `count` chains of `batch`. Whether it asked for a new
        connection, and somebody had to be found for it."""
        effect, connection = self.muxer.receive(header)
        if connection is None or effect is Effect.NONE:
            return False
        if effect is Effect.ASKED:
            return self._ask(connection)
        link = self.links.get(connection)
        if link is None:
            return False
        if effect is Effect.DELIVER:
            link.deliver(batch, first, count, header.length)
            if connection.pending:
                self.settle(connection)
        else:
            self._carry_out(effect, link)
        return False

    def _carry_out(self, effect: Effect, link: Link) -> None:
        if effect is Effect.OPENED:
            link.opened(link.connection)
        elif effect is Effect.SHUTDOWN:
            link.guest_shutdown()
        elif effect is Effect.CLOSED:
            link.linger()
        elif effect is Effect.REFUSED:
            error = ConnectionRefusedError(errno.ECONNREFUSED, f"the guest refused port {link.connection.guest_port}")
            link.failed(error)
            link.close()
        elif effect is Effect.ABORTED:
            link.abort(ConnectionResetError(errno.ECONNRESET, "reset by the guest"))
        self._link_changed(link)

    def _ask(self, connection: Connection) -> bool:
        """Find a host end for what the guest wants. Whether there is anybody to be asked."""
        acceptor = self.listeners.get(connection.host_port, self.fallback)

        def accepted(sock: HostEnd | None, aborted: Callable[[OSError], None] = lambda error: None) -> None:
            if sock is None or connection.state is not State.PENDING:
                connection.refuse()
                if sock is not None:
                    sock.close()
                self.share.give()
            else:
                self._join(Link(connection, sock, self._link_changed, offer=self.offer, aborted=aborted))
                connection.accept()
            self.settle(connection)
            self._wake()

        if acceptor is None or len(self._ends) >= self.muxer.limit or not self.may_open():
            connection.refuse()
            self.settle(connection)
            self._wake()
            return False
        acceptor(connection.host_port, accepted)
        return True

    # -- from the host -------------------------------------------------------------------------------------------------

    def connect(
        self,
        guest_port: int,
        sock: HostEnd,
        *,
        opened: Callable[[Connection], None],
        failed: Callable[[OSError], None],
        aborted: Callable[[OSError], None] = lambda error: None,
    ) -> Link:
        """Ask the guest to accept `sock`, which is the connection's from now on, as what was drawn for it from `share` is. Raises
        StateError, HostError."""
        if not self._opened or not self.live.is_set():
            raise StateError("the guest has no vsock driver now")
        if not self.poller.begin():
            raise HostError("vsock: watching a connection", errno.EMFILE, "raise the limit of open files (`ulimit -n`)")
        connection = self.muxer.connect(guest_port) if len(self._ends) < self.muxer.limit else None
        if connection is None:
            hint = "close some, or let the device have more"
            raise HostError(f"vsock: {self.muxer.limit} connections are open", errno.ENOBUFS, hint)
        changed, offer = self._link_changed, self.offer
        link = Link(connection, sock, changed, offer=offer, opened=opened, failed=failed, aborted=aborted)
        self._join(link)
        self._wake()
        return link

    def may_open(self) -> bool:
        """Whether there is a descriptor for one more host end, which is drawn from the guest's share."""
        return self.poller.begin() and self.share.take()

    def _join(self, link: Link) -> None:
        link.sock.setblocking(False)
        self.links[link.connection] = link
        self._ends.add(link)
        self.poller.forget(link.fd)
        self.poller.watch(link.fd, link.on_event)
        link.want_room = functools.partial(self.poller.want_room, link.fd)

    def _link_changed(self, link: Link) -> None:
        connection = link.connection
        if link.closed and link in self._ends:
            self._ends.discard(link)
            self.share.give()
            self.poller.forget(link.fd)
        if not connection.calm:
            self.settle(connection)
        if link.readable and connection.wants_data and not connection.blocked:
            self.muxer.schedule(connection)

    def settle(self, connection: Connection) -> None:
        """Draw the conclusions of what happened to a connection."""
        self.muxer.settle(connection)
        if connection.state is State.CLOSED:
            self.links.pop(connection, None)
            timer = self._timers.pop(connection, None)
            if timer is not None:
                timer.cancel()
        elif connection.state is State.CLOSING and connection not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[connection] = loop.call_later(_CLOSE_PATIENCE, self._give_up, connection)
            link = self.links.get(connection)
            if link is not None:
                link.close()

    def _give_up(self, connection: Connection) -> None:
        self._timers.pop(connection, None)
        connection.refuse()
        self.settle(connection)
        self._wake()


def _abort(link: Link, why: str) -> None:
    error = ConnectionResetError(errno.ECONNRESET, why)
    link.failed(error)
    link.abort(error)


def _last_word(connection: Connection) -> Header:
    """What the guest would say if it still could: that it neither sends nor receives any more."""
    place = connection.guest_cid, HOST_CID, connection.guest_port, connection.host_port
    credit = connection.peer_buf_alloc, connection.peer_fwd_cnt
    return Header(*place, 0, STREAM, Op.SHUTDOWN, SHUTDOWN_BOTH, *credit)
