"""One stream between a port of the guest and a port of the host, seen from the host: states, credit and half-close.

    state        what happens                        next         effect for the host's end
    -----------  ----------------------------------  -----------  ---------------------------------------------------
    REQUESTED    guest: RESPONSE                     ESTABLISHED  OPENED
    (host asked) guest: RST, or anything else        CLOSED       REFUSED
                 host end vanishes                   CLOSED       -
    PENDING      host end is there                   ESTABLISHED  -   (RESPONSE is sent)
    (guest asked) host refuses                       CLOSED       -   (RST is sent)
                 guest: RST, or anything else        CLOSED       ABORTED
    ESTABLISHED  guest: RW                           -            DELIVER
                 guest: SHUTDOWN of one direction    -            SHUTDOWN
                 guest: SHUTDOWN of both             CLOSED       CLOSED: what is buffered still goes to the host
                 guest: RST, or breaks the rules     CLOSED       ABORTED
                 host end ends one direction         -            -   (SHUTDOWN is sent)
                 host end has ended both             CLOSING      -   (SHUTDOWN is sent)
    CLOSING      guest: RW                           -            -   (it crossed our SHUTDOWN; nobody reads it)
                 guest: RST, or SHUTDOWN of both     CLOSED       CLOSED
                 patience is over                    CLOSED       -   (RST is sent)

An RST is never answered; a RST that we owe is `reset_due`. Credit (VIRTIO 1.2 §5.10.6.3) counts modulo 2^32: each side may
have at most the other's `buf_alloc` bytes under way or unread. The guest is held to ours, which bounds what we buffer.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from aiovmm.devices.virtio.vsock.packet import (
    HOST_CID,
    MASK32,
    SHUTDOWN_BOTH,
    SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND,
    STREAM,
    Header,
    Op,
    pack_header,
)

__all__ = ["Connection", "Effect", "State"]


class State(enum.Enum):
    """See the module."""

    REQUESTED = enum.auto()
    PENDING = enum.auto()
    ESTABLISHED = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class Effect(enum.Enum):
    """What a packet of the guest means for the host's end."""

    NONE = enum.auto()
    ASKED = enum.auto()  # a new connection: find somebody for it, then `accept` or `refuse`
    OPENED = enum.auto()
    REFUSED = enum.auto()
    DELIVER = enum.auto()  # pass the payload on, then tell `forwarded`
    SHUTDOWN = enum.auto()  # `peer_shutdown` has grown
    CLOSED = enum.auto()  # the guest has said all it had: flush, then close
    ABORTED = enum.auto()  # close at once


class Connection:
    """See the module. `buffer` is the credit that the guest gets, in bytes."""

    __slots__ = (
        "announced",
        "blocked",
        "buffer",
        "credit_requested",
        "fwd_cnt",
        "guest_cid",
        "guest_port",
        "host_port",
        "local_shutdown",
        "peer_buf_alloc",
        "peer_fwd_cnt",
        "peer_shutdown",
        "pending",
        "request_sent",
        "reset_due",
        "rx_cnt",
        "scheduled",
        "state",
        "tx_cnt",
    )

    def __init__(self, guest_cid: int, guest_port: int, host_port: int, state: State, buffer: int) -> None:
        self.guest_cid = guest_cid
        self.guest_port = guest_port
        self.host_port = host_port
        self.state = state
        self.buffer = buffer
        self.rx_cnt = self.fwd_cnt = self.announced = 0  # bytes from the guest: arrived, passed on, and said to be so
        self.tx_cnt = self.peer_fwd_cnt = self.peer_buf_alloc = 0  # bytes to the guest, and its credit
        self.peer_shutdown = self.local_shutdown = 0
        self.pending: list[Op] = [Op.REQUEST] if state is State.REQUESTED else []  # control packets to send, each once
        self.request_sent = False
        self.reset_due = False
        self.blocked = False  # data waits for the guest's credit
        self.credit_requested = False
        self.scheduled = False  # in the muxer's round

    def __repr__(self) -> str:
        return f"<Connection guest:{self.guest_port} host:{self.host_port} {self.state.name}>"

    # -- from the guest ------------------------------------------------------------------------------------------------

    def receive(self, header: Header) -> Effect:
        """A packet of the guest on this connection."""
        self.peer_buf_alloc = header.buf_alloc
        self.peer_fwd_cnt = header.fwd_cnt
        if header.op == Op.RW and self.state is State.ESTABLISHED:  # the hot one
            length = header.length
            if self.peer_shutdown & SHUTDOWN_SEND or length > self.buffer - self.unforwarded:
                return self._broken()
            if not length:
                return Effect.NONE
            self.rx_cnt = (self.rx_cnt + length) & MASK32
            return Effect.DELIVER
        if header.op == Op.RST:
            return self._close(_WHEN_RESET[self.state])
        handler = _HANDLERS.get((self.state, header.op))
        return self._broken() if handler is None else handler(self, header)

    def _opened(self, header: Header) -> Effect:
        self.state = State.ESTABLISHED
        return Effect.OPENED

    def _credit_update(self, header: Header) -> Effect:
        return Effect.NONE

    def _credit_request(self, header: Header) -> Effect:
        self._send(Op.CREDIT_UPDATE)
        return Effect.NONE

    def _shutdown(self, header: Header) -> Effect:
        self.peer_shutdown |= header.flags & SHUTDOWN_BOTH
        if self.peer_shutdown == SHUTDOWN_BOTH:  # §5.10.6.5: a clean disconnect ends with the other side's RST
            self.reset_due = True
            return self._close(Effect.CLOSED)
        return Effect.SHUTDOWN

    def _swallow(self, header: Header) -> Effect:
        return Effect.NONE

    def _broken(self) -> Effect:
        """The guest breaks the rules: §5.10.6.5, "a RST reply"."""
        self.reset_due = True
        return self._close(_WHEN_RESET[self.state])

    def _close(self, effect: Effect) -> Effect:
        self.state = State.CLOSED
        self.pending.clear()
        return effect

    # -- from the host's end -------------------------------------------------------------------------------------------

    def accept(self) -> None:
        """There is a host's end for what the guest asked."""
        self.state = State.ESTABLISHED
        self._send(Op.RESPONSE)

    def refuse(self) -> None:
        """There is none, or it is taken away at once: the guest gets an RST, unless it has not heard of us yet."""
        if self.state is State.CLOSED:
            return
        self.reset_due = self.state is not State.REQUESTED or self.request_sent
        self._close(Effect.NONE)

    def end(self, directions: int) -> None:
        """The host's end sends no more (SHUTDOWN_SEND), receives no more (SHUTDOWN_RECEIVE), or both."""
        if self.state in (State.REQUESTED, State.PENDING):
            self.refuse()
        elif self.state is State.ESTABLISHED and self.local_shutdown | directions != self.local_shutdown:
            self.local_shutdown |= directions
            self._send(Op.SHUTDOWN)
            if self.local_shutdown == SHUTDOWN_BOTH:
                self.state = State.CLOSING

    def forwarded(self, size: int) -> bool:
        """The host's end has taken `size` bytes more. True if the guest has to be told."""
        self.fwd_cnt = (self.fwd_cnt + size) & MASK32
        # Half of the buffer: the guest never starves while it may send the other half, and hears of it twice a buffer.
        if self.state is State.ESTABLISHED and (self.fwd_cnt - self.announced) & MASK32 >= self.buffer // 2:
            self._send(Op.CREDIT_UPDATE)
            return True
        return False

    @property
    def unforwarded(self) -> int:
        """Bytes of the guest that the host's end has not taken."""
        return (self.rx_cnt - self.fwd_cnt) & MASK32

    @property
    def calm(self) -> bool:
        """Established, with nothing to conclude and nothing to send but what its host's end has."""
        return self.state is State.ESTABLISHED and not self.pending and not self.blocked

    # -- to the guest --------------------------------------------------------------------------------------------------

    @property
    def credit(self) -> int:
        """Bytes that the guest has room for; 0 also if what it says makes no sense."""
        return max(self.peer_buf_alloc - ((self.tx_cnt - self.peer_fwd_cnt) & MASK32), 0)

    @property
    def wants_data(self) -> bool:
        """Whether bytes of the host's end may go to the guest, credit aside."""
        return (
            self.state is State.ESTABLISHED
            and not self.local_shutdown & SHUTDOWN_SEND
            and not self.peer_shutdown & SHUTDOWN_RECEIVE
        )

    def block(self) -> None:
        """There is data and no credit: ask for it, once until some comes."""
        self.blocked = True
        if not self.credit_requested:
            self.credit_requested = True
            self._send(Op.CREDIT_REQUEST)

    def unblock(self) -> bool:
        """Whether data that waited for credit can go on."""
        if not self.blocked or not self.credit:
            return False
        self.blocked = self.credit_requested = False
        return True

    def sent(self, size: int) -> None:
        """`size` bytes are on the ring, after a header of `header()`."""
        self.announced = self.fwd_cnt
        self.tx_cnt = (self.tx_cnt + size) & MASK32

    def header(self, op: Op = Op.RW) -> bytes:
        """A header for the guest, with the newest credit; RW without its length."""
        flags = self.local_shutdown if op is Op.SHUTDOWN else 0
        ports = self.host_port, self.guest_port
        return pack_header(HOST_CID, self.guest_cid, *ports, 0, STREAM, op, flags, self.buffer, self.fwd_cnt)

    def next_control(self) -> bytes | None:
        """The next control packet that is due, taken off the list, or None."""
        if not self.pending:
            return None
        op = self.pending.pop(0)
        if op is Op.REQUEST:
            self.request_sent = True
        self.announced = self.fwd_cnt
        return self.header(op)

    def _send(self, op: Op) -> None:
        if op not in self.pending:
            self.pending.append(op)


_WHEN_RESET = {
    State.REQUESTED: Effect.REFUSED,
    State.PENDING: Effect.ABORTED,
    State.ESTABLISHED: Effect.ABORTED,
    State.CLOSING: Effect.CLOSED,
    State.CLOSED: Effect.NONE,
}
_HANDLERS: dict[tuple[State, int], Callable[[Connection, Header], Effect]] = {
    (State.REQUESTED, Op.RESPONSE): Connection._opened,
    (State.PENDING, Op.CREDIT_UPDATE): Connection._credit_update,
    (State.ESTABLISHED, Op.CREDIT_UPDATE): Connection._credit_update,
    (State.ESTABLISHED, Op.CREDIT_REQUEST): Connection._credit_request,
    (State.ESTABLISHED, Op.SHUTDOWN): Connection._shutdown,
    (State.CLOSING, Op.RW): Connection._swallow,
    (State.CLOSING, Op.CREDIT_UPDATE): Connection._swallow,
    (State.CLOSING, Op.CREDIT_REQUEST): Connection._swallow,
    (State.CLOSING, Op.SHUTDOWN): Connection._shutdown,
}
