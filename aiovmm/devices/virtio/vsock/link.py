"""A connection joined to its host's end, a non-blocking stream socket.

Payloads of the guest are sent from guest memory; what the socket does not take is kept in `backlog`, which the credit bounds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import socket
import struct
import termios
from collections.abc import Callable
from select import EPOLLIN
from typing import Any

from aiovmm.devices.virtio.vsock.connection import Connection, State
from aiovmm.devices.virtio.vsock.packet import HEADER_SIZE, LENGTH_AT, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND
from aiovmm.devices.virtio.vsock.poller import ENDING, GONE, IN, OUT
from aiovmm.native import ffi, lib
from aiovmm.virtqueue.batch import Batch

__all__ = ["Link"]

_AGAIN = (-errno.EAGAIN, -errno.EWOULDBLOCK)


class Link:
    """`opened(connection)` is called when the guest accepts, before any payload; `failed(error)` if it refuses, or the host's end
    goes before that; `aborted` if the established connection ends otherwise than by both sides' will. `changed(link)` asks for a
    look at it: it has something to send, or is closed. `offer`, if given, is called instead when all that is new is something to
    send."""

    def __init__(
        self,
        connection: Connection,
        sock: socket.socket,
        changed: Callable[[Link], None],
        *,
        offer: Callable[[Link], None] | None = None,
        opened: Callable[[Connection], None] = lambda connection: None,
        failed: Callable[[OSError], None] = lambda error: None,
        aborted: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        self.connection = connection
        self.sock = sock
        self.fd = sock.fileno()
        self.opened = opened
        self.failed = failed
        self.aborted = aborted
        self.backlog = bytearray()
        self.readable = False
        self.lingering = False  # the guest's side is over; the backlog still goes to the host
        self.closed = False
        self._hung_up = False
        # An end, or out-of-band data, is or was behind what can be read: no further event may tell of it.
        self._ending = False
        self._deaf = False  # the host reads no more
        self.changed = changed
        self.offer = offer or changed
        self.want_room: Callable[[bool], None] = lambda wanted: None  # given by who watches the socket

    # -- what the socket says ------------------------------------------------------------------------------------------

    def on_event(self, events: int) -> None:
        """Readiness, as epoll reports it."""
        if events == EPOLLIN and not self.closed:
            self.readable = True
            self.offer(self)
            return
        if events & OUT and self.backlog:
            self.flush()
        if events & (ENDING | GONE):
            self._ending = True
        if events & GONE:
            self._host_is_gone()
        if events & IN and not self.closed:
            self.readable = True
        self.changed(self)

    def _host_is_gone(self) -> None:
        """It takes nothing more. What it has sent before is still read, if the guest wants it, and only behind that the guest
        is told, once: there are drivers that take any SHUTDOWN as the end. Who goes on sending hears earlier (`deliver`)."""
        self._hung_up = True
        self._drop_backlog()
        if self.lingering or not (self.connection.wants_data or self._asking):
            self.close()
        else:
            self.readable = True

    @property
    def _asking(self) -> bool:
        """The guest has not accepted yet, and something is there for it when it does."""
        return self.connection.state is State.REQUESTED and bool(_waiting(self.sock))

    # -- to the host ---------------------------------------------------------------------------------------------------

    def deliver(self, batch: Batch, first: int, count: int, length: int) -> None:
        """The payloads of a run of `count` chains, `length` bytes in all: on to the host, or into the backlog."""
        if self._deaf:
            self.connection.end(SHUTDOWN_RECEIVE)
            self.connection.forwarded(length)
            return
        sent = 0
        if not self.backlog:
            sent = lib.avmm_frames_send(self.fd, batch.chains, first, count, batch.iov, HEADER_SIZE, length)
            if sent < 0 and sent not in _AGAIN:
                self._host_reads_no_more()
                self.connection.forwarded(length)
                return
            sent = max(sent, 0)
        if sent < length:
            self._keep(batch, first, count, sent, length - sent)
        self.connection.forwarded(sent)

    def _keep(self, batch: Batch, first: int, count: int, skip: int, length: int) -> None:
        room = ffi.new("uint8_t[]", length)
        lib.avmm_frames_copy(batch.chains, first, count, batch.iov, HEADER_SIZE, skip, room, length)
        if not self.backlog:
            self.want_room(True)
        self.backlog += ffi.buffer(room, length)

    def flush(self) -> None:
        """As much of the backlog as the host takes."""
        while self.backlog:
            try:
                sent = self.sock.send(self.backlog, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._host_reads_no_more()
                break
            del self.backlog[:sent]
            self.connection.forwarded(sent)
        self.want_room(False)
        if self.lingering:
            self.close()
        elif self.connection.peer_shutdown & SHUTDOWN_SEND:
            self._shutdown(socket.SHUT_WR)

    def _host_reads_no_more(self) -> None:
        if _is_gone(self.sock):
            self._host_is_gone()
        else:
            self._drop_backlog()
            self.connection.end(SHUTDOWN_RECEIVE)

    def _drop_backlog(self) -> None:
        self._deaf = True
        self.connection.forwarded(len(self.backlog))
        self.backlog.clear()

    # -- from the host -------------------------------------------------------------------------------------------------

    def receive(
        self, batch: Batch, first: int, header: Any, limit: int, heads: Any, lengths: Any, taken: Any
    ) -> int | None:
        """At most `limit` bytes into chains from `first` on; None if the first has no room for a payload."""
        got: int = lib.avmm_frames_recv(
            self.fd,
            batch.chains,
            first,
            batch.count,
            batch.iov,
            header,
            HEADER_SIZE,
            LENGTH_AT,
            limit,
            heads,
            lengths,
            taken,
        )
        if got == -errno.EMSGSIZE:
            return None
        self.received(got, taken.drained)
        return max(got, 0)

    def received(self, got: int, drained: bool) -> None:
        """What a read of the socket gave: bytes, now on the ring; 0, its end; or -errno."""
        if got > 0:
            self.connection.sent(got)
            if drained and not self._ending:
                self.readable = False  # without asking once more: what comes next is an event
            return
        self.readable = False
        if got not in _AGAIN:  # the end, or an error that is one
            both = self._hung_up or got < 0 or _is_gone(self.sock)  # of which an event may be on its way
            self.connection.end(SHUTDOWN_BOTH if both else SHUTDOWN_SEND)

    # -- what the guest says -------------------------------------------------------------------------------------------

    def guest_shutdown(self) -> None:
        """The guest has ended a direction."""
        if self.connection.peer_shutdown & SHUTDOWN_RECEIVE:
            self._shutdown(socket.SHUT_RD)
            if self._hung_up:
                self.close()
                return
        if self.connection.peer_shutdown & SHUTDOWN_SEND and not self.backlog:
            self._shutdown(socket.SHUT_WR)

    def _shutdown(self, how: int) -> None:
        with contextlib.suppress(OSError):  # the host's end is gone, as an event will tell
            self.sock.shutdown(how)

    def linger(self) -> None:
        """The guest's side is over, with nothing lost: close when the host has taken the backlog."""
        self.lingering = True
        self.readable = False
        if not self.backlog:
            self.close()

    def abort(self, error: OSError) -> None:
        """The guest's side is over: close at once."""
        if not self.closed:
            self.backlog.clear()
            self.aborted(error)
            self.close()

    def close(self) -> None:
        """The host's end is over, whatever the connection's state. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.readable = False
        if self.connection.state is State.REQUESTED:
            self.failed(ConnectionResetError(errno.ECONNRESET, "the host's end went before the guest had answered"))
        self.connection.end(SHUTDOWN_BOTH)
        self.changed(self)
        self.sock.close()


def _is_gone(sock: socket.socket) -> bool:
    """Whether its other end has closed both directions."""
    poller = select.poll()
    poller.register(sock, 0)
    return bool(poller.poll(0))


def _waiting(sock: socket.socket) -> int:
    """Bytes that can be read."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0])
