"""All connections of one guest: which packet belongs to which, who sends next, and which RSTs are owed.

Connections with something to send stand in one round and get a turn each, whatever they have to send: 500 of them share the
rings evenly. All that a guest can make us keep is bounded: connections by `limit`, control packets by one of a kind a
connection, RSTs by `RESET_LIMIT`.
"""

from __future__ import annotations

from collections import deque

from aiovmm.devices.virtio.vsock.connection import Connection, Effect, State
from aiovmm.devices.virtio.vsock.packet import HOST_CID, STREAM, Header, Op

__all__ = ["FIRST_HOST_PORT", "LAST_HOST_PORT", "RESET_LIMIT", "Muxer"]

FIRST_HOST_PORT = 1 << 30  # host ends of connections to the guest; ports below are for listeners
LAST_HOST_PORT = (1 << 31) - 1
RESET_LIMIT = 1024
"""RSTs that wait for room on the rx ring. A guest that sends nonsense and takes no answers loses those beyond."""

_DELIVER = Effect.DELIVER  # of an enumeration's members each look-up takes long


class Muxer:
    """See the module. `buffer` is each connection's credit in bytes; the guest may use no other source than `guest_cid`."""

    def __init__(self, guest_cid: int, *, buffer: int, limit: int) -> None:
        self.guest_cid = guest_cid
        self.buffer = buffer
        self.limit = limit
        self.connections: dict[tuple[int, int], Connection] = {}  # by (guest's port, host's port)
        self.round: deque[Connection] = deque()
        self.resets: deque[bytes] = deque()
        self.resets_lost = 0
        self.tx_bytes = self.rx_bytes = 0  # of all connections there were; as the guest sees directions
        self.next_port = FIRST_HOST_PORT

    # -- from the guest ------------------------------------------------------------------------------------------------

    def receive(self, header: Header) -> tuple[Effect, Connection | None]:
        """A packet of the guest: its connection, if it has one, and what it means for the host's end."""
        if header.src_cid != self.guest_cid:  # §5.10.6.4 has nothing for a forged source: there is nobody to answer
            return Effect.NONE, None
        connection = self.connections.get((header.src_port, header.dst_port))
        if connection is None or header.dst_cid != HOST_CID or header.type != STREAM:
            return self._unknown(header)
        effect = connection.receive(header)
        if effect is _DELIVER:
            self.tx_bytes += header.length
        if not connection.calm:
            self.settle(connection)
        return effect, connection

    def _unknown(self, header: Header) -> tuple[Effect, Connection | None]:
        if header.op == Op.RST:
            return Effect.NONE, None
        fits = header.op == Op.REQUEST and header.dst_cid == HOST_CID and header.type == STREAM
        if not fits or len(self.connections) >= self.limit:
            self._reset(header.dst_cid, header.dst_port, header.src_port, header.type)
            return Effect.NONE, None
        connection = self._add(header.src_port, header.dst_port, State.PENDING)
        connection.peer_buf_alloc, connection.peer_fwd_cnt = header.buf_alloc, header.fwd_cnt
        return Effect.ASKED, connection

    # -- from the host -------------------------------------------------------------------------------------------------

    def connect(self, guest_port: int) -> Connection | None:
        """A connection to the guest, to be requested; None if there are as many as there may be."""
        if len(self.connections) >= self.limit:
            return None
        while (guest_port, self.next_port) in self.connections:
            self._advance()
        connection = self._add(guest_port, self.next_port, State.REQUESTED)
        self._advance()
        self.schedule(connection)
        return connection

    def settle(self, connection: Connection) -> None:
        """Draw the conclusions of what happened to a connection: forget it if it is closed, let it send what it has to."""
        if connection.state is State.CLOSED:
            key = connection.guest_port, connection.host_port
            if self.connections.get(key) is connection:
                del self.connections[key]
            if connection.reset_due:
                connection.reset_due = False
                self._reset(HOST_CID, connection.host_port, connection.guest_port, STREAM)
        elif connection.pending or connection.unblock():
            self.schedule(connection)

    def schedule(self, connection: Connection) -> None:
        """Give it a turn."""
        if not connection.scheduled:
            connection.scheduled = True
            self.round.append(connection)

    def clear(self) -> list[Connection]:
        """The guest is gone: forget everything; the connections that there were."""
        gone = list(self.connections.values())
        for connection in gone:
            connection.state = State.CLOSED
            connection.pending.clear()
        for connection in self.round:
            connection.scheduled = False
        self.connections.clear()
        self.round.clear()
        self.resets.clear()
        return gone

    # -- to the guest --------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether anything may be there to send."""
        return bool(self.resets or self.round)

    def next_reset(self) -> bytes | None:
        """The next RST that is owed, or None."""
        return self.resets.popleft() if self.resets else None

    def next_turn(self) -> Connection | None:
        """Whose turn it is; `schedule` it again for another."""
        while self.round:
            connection = self.round.popleft()
            connection.scheduled = False
            if connection.state is not State.CLOSED:
                return connection
        return None

    # -- within --------------------------------------------------------------------------------------------------------

    def _add(self, guest_port: int, host_port: int, state: State) -> Connection:
        connection = Connection(self.guest_cid, guest_port, host_port, state, self.buffer)
        self.connections[guest_port, host_port] = connection
        return connection

    def _advance(self) -> None:
        self.next_port = FIRST_HOST_PORT if self.next_port == LAST_HOST_PORT else self.next_port + 1

    def _reset(self, src_cid: int, src_port: int, dst_port: int, type_: int) -> None:
        """§5.10.6.4.2: "a RST reply for all unknown packets", from where the packet was sent to."""
        if len(self.resets) >= RESET_LIMIT:
            self.resets_lost += 1
            return
        header = Header(src_cid, self.guest_cid, src_port, dst_port, type=type_, op=Op.RST)
        self.resets.append(header.pack())
