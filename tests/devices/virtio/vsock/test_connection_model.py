"""One connection against a model of the guest, under any interleaving of both programs, both sides and both rings.

Streams are counted, not carried: byte i of a stream is i. Invariants: neither side ever has more than its credit under way,
nothing is lost, and when both programs go on reading everything arrives and both sides come to an end: no deadlock.
"""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiovmm.devices.virtio.vsock.connection import Connection, Effect, State
from aiovmm.devices.virtio.vsock.muxer import Muxer
from aiovmm.devices.virtio.vsock.packet import (
    HOST_CID,
    MASK32,
    SHUTDOWN_BOTH,
    SHUTDOWN_SEND,
    Header,
    Op,
)

CID, GUEST_PORT, HOST_PORT = 42, 5000, 80
AMOUNT = st.integers(1, 5000)


class GuestModel:
    """The guest's kernel and program: VIRTIO 1.2 §5.10.6 as its driver follows it."""

    def __init__(self, buffer: int, to_host: deque[Header], start: int) -> None:
        self.buffer = buffer
        self.out = to_host
        self.rx_cnt = self.fwd_cnt = self.announced = start
        self.tx_cnt = start
        self.peer_alloc, self.peer_fwd = 0, start
        self.sent = self.received = self.read = 0
        self.peer_shutdown = self.shutdown = 0
        self.waiting = 0  # bytes that the program wrote, without credit to send them
        self.ending = False
        self.established = self.reset = False

    def send(self, op: Op, length: int = 0, flags: int = 0) -> None:
        self.announced = self.fwd_cnt
        header = Header(CID, HOST_CID, GUEST_PORT, HOST_PORT, length, 1, op, flags, self.buffer, self.fwd_cnt)
        self.out.append(header)

    @property
    def credit(self) -> int:
        return self.peer_alloc - ((self.tx_cnt - self.peer_fwd) & MASK32)

    def write(self, size: int) -> None:
        if not self.shutdown & SHUTDOWN_SEND and not self.ending:
            self.waiting += size
            self.flush()

    def flush(self) -> None:
        size = min(self.waiting, self.credit)
        if size > 0 and self.established and not self.reset:
            self.waiting -= size
            self.tx_cnt = (self.tx_cnt + size) & MASK32
            self.sent += size
            self.send(Op.RW, size)

    def consume(self, size: int) -> None:
        size = min(size, self.received - self.read)
        self.read += size
        self.fwd_cnt = (self.fwd_cnt + size) & MASK32
        if not self.reset and (self.fwd_cnt - self.announced) & MASK32 >= self.buffer // 2:
            self.send(Op.CREDIT_UPDATE)

    def end(self, flags: int) -> None:
        self.ending = True
        if self.established and not self.reset and not self.waiting and self.shutdown | flags != self.shutdown:
            self.shutdown |= flags
            self.send(Op.SHUTDOWN, flags=self.shutdown)

    def receive(self, header: Header) -> None:
        assert not self.reset or header.op == Op.RST
        self.peer_alloc, self.peer_fwd = header.buf_alloc, header.fwd_cnt
        if header.op == Op.RW:
            assert not self.peer_shutdown & SHUTDOWN_SEND
            self.rx_cnt = (self.rx_cnt + header.length) & MASK32
            self.received += header.length
            assert (self.rx_cnt - self.fwd_cnt) & MASK32 <= self.buffer
        elif header.op == Op.RESPONSE:
            self.established = True
        elif header.op == Op.CREDIT_REQUEST:
            self.send(Op.CREDIT_UPDATE)
        elif header.op == Op.SHUTDOWN:
            self.peer_shutdown |= header.flags
        elif header.op == Op.RST:
            self.reset = True
        self.flush()


class Interleavings(RuleBasedStateMachine):
    @initialize(
        ours=st.integers(4096, 9000),
        theirs=st.integers(100, 9000),
        start=st.sampled_from([0, (1 << 32) - 3000]),
    )
    def connect(self, ours: int, theirs: int, start: int) -> None:
        self.to_host: deque[Header] = deque()
        self.to_guest: deque[Header] = deque()
        self.mux = Muxer(CID, buffer=ours, limit=1)
        self.guest = GuestModel(theirs, self.to_host, start)
        self.host_out = self.host_written = 0  # bytes in the host's socket, and ever written to it
        self.backlog = self.host_read = 0
        self.host_ended = False
        self.guest.send(Op.REQUEST)
        effect, connection = self.mux.receive(self.to_host.popleft())
        assert effect is Effect.ASKED
        assert connection is not None
        self.connection: Connection = connection
        for name in ("rx_cnt", "fwd_cnt", "announced", "tx_cnt"):
            setattr(connection, name, start)
        connection.accept()
        self.mux.settle(connection)

    # -- the programs

    @rule(size=AMOUNT)
    def host_writes(self, size: int) -> None:
        if not self.host_ended:
            self.host_out += size
            self.host_written += size
            self._readable()

    @rule(size=AMOUNT)
    def host_reads(self, size: int) -> None:
        size = min(size, self.backlog)
        self.backlog -= size
        self.host_read += size
        self.connection.forwarded(size)
        self.mux.settle(self.connection)

    @rule()
    def host_ends(self) -> None:
        self.host_ended = True
        self._readable()

    @rule(size=AMOUNT)
    def guest_writes(self, size: int) -> None:
        self.guest.write(size)

    @rule(size=AMOUNT)
    def guest_reads(self, size: int) -> None:
        self.guest.consume(size)

    @rule()
    def guest_ends(self) -> None:
        self.guest.end(SHUTDOWN_SEND)

    def _readable(self) -> None:
        if self.connection.wants_data and not self.connection.blocked:
            self.mux.schedule(self.connection)

    # -- the rings

    @precondition(lambda self: self.to_host)
    @rule()
    def guest_packet_arrives(self) -> None:
        effect, connection = self.mux.receive(self.to_host.popleft())
        assert effect is not Effect.ABORTED, "the guest kept the rules"
        if effect is Effect.DELIVER:
            assert connection is self.connection
            self.backlog = self.guest_sent_and_arrived() - self.host_read

    def guest_sent_and_arrived(self) -> int:
        return self.guest.sent - sum(h.length for h in self.to_host)

    @precondition(lambda self: self.to_guest)
    @rule()
    def host_packet_arrives(self) -> None:
        self.guest.receive(self.to_guest.popleft())

    @precondition(lambda self: self.mux.busy)
    @rule(room=st.integers(1, 4), limit=AMOUNT)
    def a_turn(self, room: int, limit: int) -> None:
        """As `Rings._serve`: control packets, then payload."""
        while room and (reset := self.mux.next_reset()) is not None:
            self.to_guest.append(Header.parse(reset))
            room -= 1
        c = self.mux.next_turn()
        if c is None:
            return
        while room and (packet := c.next_control()) is not None:
            self.to_guest.append(Header.parse(packet))
            room -= 1
        if c.wants_data and (self.host_out or self.host_ended):
            size = min(c.credit, limit, self.host_out)
            if not self.host_out:
                c.end(SHUTDOWN_SEND)
            elif not c.credit:
                c.block()
            elif room:
                self.to_guest.append(Header.parse(c.header())._replace(length=size))
                c.sent(size)
                self.host_out -= size
                self.mux.schedule(c)
            else:
                self.mux.schedule(c)
        self.mux.settle(c)

    @invariant()
    def credit_is_kept(self) -> None:
        if hasattr(self, "connection"):
            assert self.connection.unforwarded <= self.connection.buffer
            assert self.backlog <= self.connection.buffer
            assert len(self.connection.pending) <= len(Op)

    def teardown(self) -> None:
        """Both programs say no more, read all and close: everything has to arrive and to end."""
        if not hasattr(self, "connection"):
            return
        self.host_ended = True
        self._readable()
        for _ in range(50_000):
            if self.to_host:
                self.guest_packet_arrives()
            elif self.to_guest:
                self.host_packet_arrives()
            elif self.mux.busy:
                self.a_turn(4, 5000)
            elif self.backlog:
                self.host_reads(5000)
            elif self.guest.read < self.guest.received:
                self.guest_reads(5000)
            else:
                break
        assert self.guest.established
        assert self.guest.read == self.host_written, "bytes of the host are stuck"
        assert not self.guest.waiting, "the guest waits for credit for ever"
        assert self.host_read == self.guest.sent, "bytes of the guest are stuck"
        assert self.guest.peer_shutdown & SHUTDOWN_SEND
        self.guest.end(SHUTDOWN_BOTH)
        self.guest_packet_arrives()
        self.a_turn(4, 1)
        self.host_packet_arrives()
        assert self.guest.reset
        assert self.connection.state is State.CLOSED
        assert not self.mux.connections
        assert not self.mux.busy
        super().teardown()


Interleavings.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestInterleavings = Interleavings.TestCase
