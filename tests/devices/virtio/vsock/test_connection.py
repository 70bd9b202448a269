"""The connection's states, one rule at a time, and two of them against each other in any order of events."""

from __future__ import annotations

import pytest

from aiovmm.devices.virtio.vsock.connection import Connection, Effect, State
from aiovmm.devices.virtio.vsock.muxer import FIRST_HOST_PORT, RESET_LIMIT, Muxer
from aiovmm.devices.virtio.vsock.packet import (
    HOST_CID,
    SHUTDOWN_BOTH,
    SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND,
    Header,
    Op,
)

CID, GUEST_PORT, HOST_PORT = 42, 5000, 80
BUFFER = 1000


def packet(op: int, length: int = 0, **fields: int) -> Header:
    values = {"src_cid": CID, "dst_cid": HOST_CID, "src_port": GUEST_PORT, "dst_port": HOST_PORT, "buf_alloc": 500}
    return Header(**{**values, "op": op, "length": length, **fields})


def muxer(limit: int = 8) -> Muxer:
    return Muxer(CID, buffer=BUFFER, limit=limit)


def sent(mux: Muxer) -> list[tuple[Op, int, int]]:
    """What the muxer sends now: (op, flags, fwd_cnt)."""
    packets = []
    while (data := mux.next_reset()) is not None:
        packets.append(Header.parse(data))
    while (connection := mux.next_turn()) is not None:
        while (data := connection.next_control()) is not None:
            packets.append(Header.parse(data))
    assert all(p.dst_cid == CID for p in packets)
    return [(Op(p.op), p.flags, p.fwd_cnt) for p in packets]


def established() -> tuple[Muxer, Connection]:
    mux = muxer()
    effect, connection = mux.receive(packet(Op.REQUEST))
    assert effect is Effect.ASKED
    assert connection is not None
    connection.accept()
    mux.settle(connection)
    assert sent(mux) == [(Op.RESPONSE, 0, 0)]
    return mux, connection


def requested() -> tuple[Muxer, Connection, Header]:
    mux = muxer()
    connection = mux.connect(GUEST_PORT)
    assert connection is not None
    assert connection.host_port >= FIRST_HOST_PORT
    assert sent(mux) == [(Op.REQUEST, 0, 0)]
    return mux, connection, packet(Op.RESPONSE, dst_port=connection.host_port)


def test_the_guest_accepts() -> None:
    mux, connection, answer = requested()
    assert mux.receive(answer) == (Effect.OPENED, connection)
    assert connection.credit == 500


@pytest.mark.parametrize("op", [Op.RST, Op.RW, Op.SHUTDOWN, Op.REQUEST, Op.CREDIT_UPDATE, 0, 99])
def test_anything_but_a_response_refuses(op: int) -> None:
    mux, connection, answer = requested()
    assert mux.receive(answer._replace(op=op)) == (Effect.REFUSED, connection)
    assert not mux.connections
    assert sent(mux) == ([] if op == Op.RST else [(Op.RST, 0, 0)])


def test_a_host_that_vanishes_before_the_answer() -> None:
    mux, connection, answer = requested()
    connection.end(SHUTDOWN_BOTH)
    mux.settle(connection)
    assert sent(mux) == [(Op.RST, 0, 0)]
    assert mux.receive(answer) == (Effect.NONE, None)  # it crossed the RST
    assert sent(mux) == [(Op.RST, 0, 0)]


def test_a_host_that_vanishes_before_the_guest_has_heard_of_it() -> None:
    mux = muxer()
    connection = mux.connect(GUEST_PORT)
    assert connection is not None
    connection.end(SHUTDOWN_BOTH)
    mux.settle(connection)
    assert sent(mux) == []
    assert not mux.connections


def test_nobody_listens_on_the_host() -> None:
    mux = muxer()
    _, connection = mux.receive(packet(Op.REQUEST))
    assert connection is not None
    connection.refuse()
    mux.settle(connection)
    assert sent(mux) == [(Op.RST, 0, 0)]
    assert not mux.connections


def test_a_rst_is_never_answered() -> None:
    mux, _ = established()
    for header in (
        packet(Op.RST, src_port=1),
        packet(Op.RST, dst_cid=9),
        packet(Op.RST, type=2),
        packet(Op.RST),
        packet(Op.RST),
    ):
        mux.receive(header)
        assert sent(mux) == []


@pytest.mark.parametrize(
    "header",
    [
        packet(Op.RW, src_port=1),
        packet(Op.REQUEST, dst_cid=9),
        packet(Op.REQUEST, type=2),
        packet(0, src_port=1),
        packet(77, dst_port=1),
    ],
)
def test_unknown_packets_are_reset_from_where_they_were_sent_to(header: Header) -> None:
    mux, _ = established()
    assert mux.receive(header) == (Effect.NONE, None)
    data = mux.next_reset()
    assert data is not None
    reset = Header.parse(data)
    assert reset.op == Op.RST
    assert (reset.src_cid, reset.src_port) == (header.dst_cid, header.dst_port)
    assert (reset.dst_cid, reset.dst_port, reset.type) == (CID, header.src_port, header.type)


def test_a_forged_source_is_ignored() -> None:
    mux, connection = established()
    assert mux.receive(packet(Op.RST, src_cid=CID + 1)) == (Effect.NONE, None)
    assert mux.receive(packet(Op.REQUEST, src_cid=1, src_port=9)) == (Effect.NONE, None)
    assert sent(mux) == []
    assert connection.state is State.ESTABLISHED


def test_resets_owed_are_bounded() -> None:
    mux = muxer()
    for port in range(RESET_LIMIT + 10):
        mux.receive(packet(Op.RW, src_port=port))
    assert len(sent(mux)) == RESET_LIMIT
    assert mux.resets_lost == 10


def test_connections_are_bounded() -> None:
    mux = muxer(limit=2)
    for port in range(5):
        mux.receive(packet(Op.REQUEST, src_port=port))
    assert len(mux.connections) == 2
    assert sent(mux) == [(Op.RST, 0, 0)] * 3
    assert mux.connect(1) is None


def test_the_guest_is_told_of_space_twice_a_buffer() -> None:
    mux, connection = established()
    assert mux.receive(packet(Op.RW, BUFFER)) == (Effect.DELIVER, connection)
    assert not connection.forwarded(BUFFER // 2 - 1)
    assert connection.forwarded(1)
    mux.settle(connection)
    assert sent(mux) == [(Op.CREDIT_UPDATE, 0, BUFFER // 2)]
    assert not connection.forwarded(BUFFER // 2 - 1)


@pytest.mark.parametrize("over", [1, 1 << 31, (1 << 32) - 1 - BUFFER])
def test_a_guest_that_exceeds_its_credit_is_reset(over: int) -> None:
    mux, connection = established()
    assert mux.receive(packet(Op.RW, BUFFER + over)) == (Effect.ABORTED, connection)
    assert sent(mux) == [(Op.RST, 0, 0)]
    assert not mux.connections


def test_counters_wrap() -> None:
    mux, connection = established()
    connection.rx_cnt = connection.fwd_cnt = connection.announced = connection.tx_cnt = (1 << 32) - 10
    mux.receive(packet(Op.CREDIT_UPDATE, fwd_cnt=connection.tx_cnt))
    assert connection.credit == 500
    connection.sent(400)
    assert connection.credit == 100
    mux.receive(packet(Op.CREDIT_UPDATE, fwd_cnt=90))
    assert connection.credit == 200
    assert mux.receive(packet(Op.RW, BUFFER))[0] is Effect.DELIVER
    assert connection.unforwarded == BUFFER
    assert connection.forwarded(BUFFER)
    mux.settle(connection)
    assert sent(mux) == [(Op.CREDIT_UPDATE, 0, BUFFER - 10)]


def test_credit_that_makes_no_sense_is_none() -> None:
    mux, connection = established()
    mux.receive(packet(Op.CREDIT_UPDATE, fwd_cnt=1))  # it claims to have taken what was never sent
    assert connection.credit == 0


def test_credit_is_asked_for_once_until_some_comes() -> None:
    mux, connection = established()
    connection.sent(500)
    for _ in range(3):
        connection.block()
        mux.settle(connection)
    assert sent(mux) == [(Op.CREDIT_REQUEST, 0, 0)]
    mux.receive(packet(Op.CREDIT_UPDATE))
    assert not mux.busy
    mux.receive(packet(Op.CREDIT_UPDATE, fwd_cnt=1))
    assert mux.next_turn() is connection  # its data goes on


def test_the_guest_asks_for_credit() -> None:
    mux, _ = established()
    for _ in range(3):
        mux.receive(packet(Op.CREDIT_REQUEST))
    assert sent(mux) == [(Op.CREDIT_UPDATE, 0, 0)]


def test_the_guest_closes() -> None:
    mux, connection = established()
    assert mux.receive(packet(Op.SHUTDOWN, flags=SHUTDOWN_SEND)) == (Effect.SHUTDOWN, connection)
    assert connection.wants_data
    assert mux.receive(packet(Op.SHUTDOWN, flags=SHUTDOWN_RECEIVE)) == (Effect.CLOSED, connection)
    assert sent(mux) == [(Op.RST, 0, 0)]
    assert not mux.connections


def test_payload_after_shutdown_is_a_breach() -> None:
    mux, connection = established()
    mux.receive(packet(Op.SHUTDOWN, flags=SHUTDOWN_SEND))
    assert mux.receive(packet(Op.RW, 1)) == (Effect.ABORTED, connection)
    assert sent(mux) == [(Op.RST, 0, 0)]


def test_the_host_closes() -> None:
    mux, connection = established()
    connection.end(SHUTDOWN_SEND)
    connection.end(SHUTDOWN_SEND)
    mux.settle(connection)
    assert sent(mux) == [(Op.SHUTDOWN, SHUTDOWN_SEND, 0)]
    assert not connection.wants_data
    connection.end(SHUTDOWN_RECEIVE)
    mux.settle(connection)
    assert sent(mux) == [(Op.SHUTDOWN, SHUTDOWN_BOTH, 0)]
    assert connection.state is State.CLOSING
    assert mux.receive(packet(Op.RW, 10))[0] is Effect.NONE  # it crossed the SHUTDOWN
    assert mux.receive(packet(Op.RST))[0] is Effect.CLOSED
    assert sent(mux) == []
    assert not mux.connections


def test_patience_with_a_guest_that_never_closes_ends() -> None:
    mux, connection = established()
    connection.end(SHUTDOWN_BOTH)
    mux.settle(connection)
    sent(mux)
    connection.refuse()
    mux.settle(connection)
    assert sent(mux) == [(Op.RST, 0, 0)]


def test_every_connection_gets_its_turn() -> None:
    mux = muxer(limit=5)
    connections = [mux.connect(port) for port in range(5)]
    order = []
    for _ in range(10):
        connection = mux.next_turn()
        assert connection is not None
        order.append(connection)
        mux.schedule(connection)
    assert order == connections * 2


def test_a_host_port_in_use_is_passed_over() -> None:
    mux = muxer()
    first = mux.connect(GUEST_PORT)
    assert first is not None
    mux.next_port = first.host_port
    second = mux.connect(GUEST_PORT)
    assert second is not None
    assert second.host_port != first.host_port
