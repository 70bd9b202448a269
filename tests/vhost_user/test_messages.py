"""The codec: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiovmm.errors import PeerError
from aiovmm.vhost_user.framing import Frame, Framer
from aiovmm.vhost_user.messages import HEADER_SIZE, Header, Message, decode, encode
from aiovmm.vhost_user.payloads import ConfigSpace, InflightArea, MemoryTable, Region, VringAddr, VringState, Word
from aiovmm.vhost_user.protocol import MAX_FDS, MAX_PAYLOAD, BackendRequest, Flag, FrontendRequest
from tests.vhost_user.messages_of import messages


def reread(
    data: bytes, fds: tuple[int, ...] = (), kind: type[FrontendRequest] | type[BackendRequest] = FrontendRequest
) -> Message:
    return decode(Header.unpack(data[:HEADER_SIZE]), data[HEADER_SIZE:], fds, kind)


@given(messages())
def test_every_message_survives_the_wire(message: Message) -> None:
    kind = type(message.request)
    assert reread(encode(message), message.fds, kind) == message


@given(st.lists(messages(), min_size=1, max_size=5), st.data())
def test_a_stream_cut_anywhere_gives_the_same_messages(sent: list[Message], data: st.DataObject) -> None:
    framer = Framer()
    for message in sent:
        rest, fds = encode(message), message.fds
        frame: Frame | None = None
        while rest:
            assert frame is None
            n = data.draw(st.integers(1, min(framer.wanted, len(rest))))
            frame = framer.feed(rest[:n], fds)
            rest, fds = rest[n:], ()
        assert frame is not None
        assert framer.idle
        assert decode(frame.header, frame.body, frame.fds, type(message.request)) == message


@given(
    st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE),
    st.binary(max_size=MAX_PAYLOAD + 8),
    st.integers(0, MAX_FDS + 2),
)
@example(struct.pack("<III", 5, 1, 8), struct.pack("<II", 1 << 31, 0), 1)
@example(struct.pack("<III", 24, 1, 12), struct.pack("<III", 0, 0xFFFFFFFF, 0), 0)
@example(struct.pack("<III", 12, 1, 8), struct.pack("<Q", 1 << 63), 1)
def test_any_bytes_are_a_message_or_a_peer_error(header: bytes, body: bytes, count: int) -> None:
    framer = Framer()
    try:
        frame = framer.feed(header, range(count))
        while frame is None and body:
            part = body[: framer.wanted]
            frame = framer.feed(part)
            body = body[len(part) :]
        if frame is not None:
            decode(frame.header, frame.body, frame.fds, FrontendRequest)
    except PeerError:
        pass
    assert framer.wanted <= MAX_PAYLOAD + HEADER_SIZE


@given(messages(), st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_is_another_message_or_a_peer_error(message: Message, at: int, value: int) -> None:
    data = bytearray(encode(message))
    data[at % len(data)] = value
    try:
        header = Header.unpack(bytes(data[:HEADER_SIZE]))
        decode(header, bytes(data[HEADER_SIZE:]), message.fds, type(message.request))
    except PeerError:
        pass


@pytest.mark.parametrize(
    ("request_", "body", "fds", "complaint"),
    [
        (99, b"", 0, "unknown request 99"),
        (2, b"\0" * 7, 0, "a number has 7 bytes instead of 8"),
        (2, b"\0" * 8, 1, "comes with 1 file descriptors"),
        (5, b"\0" * 8, 1, "has 0 regions"),
        (5, MemoryTable((Region(0, 4096, 0, 0),) * 2).pack(), 1, "of 2 regions comes with 1"),
        (5, MemoryTable((Region(0, 0, 0, 0),)).pack(), 1, "empty or wraps round"),
        (5, MemoryTable((Region((1 << 64) - 1, 4096, 0, 0),)).pack(), 1, "empty or wraps round"),
        (9, b"\0" * 39, 0, "has 39 bytes instead of 40"),
        (12, Word(0x100).pack(), 1, "says otherwise"),
        (12, Word(3).pack(), 0, "says otherwise"),
        (12, Word(0x1000).pack(), 1, "unknown bits"),
        (24, struct.pack("<III", 250, 10, 0) + bytes(10), 0, "10 bytes at 250"),
        (24, struct.pack("<III", 0, 10, 0) + bytes(9), 0, "carries 9"),
        (32, InflightArea((1 << 64) - 1, 1, 1, 1).pack(), 1, "wraps round"),
    ],
)
def test_what_is_wrong_is_said(request_: int, body: bytes, fds: int, complaint: str) -> None:
    with pytest.raises(PeerError, match=complaint):
        reread(struct.pack("<III", request_, 1, len(body)) + body, tuple(range(fds)))


def test_another_version_and_a_huge_size_end_at_the_header() -> None:
    with pytest.raises(PeerError, match="version 2"):
        Header.unpack(struct.pack("<III", 1, 2, 0))
    with pytest.raises(PeerError, match="4294967295 bytes"):
        Header.unpack(struct.pack("<III", 1, 1, 0xFFFFFFFF))


def test_the_wire_is_that_of_the_specification() -> None:
    """Written out by hand after the document."""
    addr = Message(FrontendRequest.SET_VRING_ADDR, VringAddr(1, desc=0x10, used=0x20, avail=0x30, flags=2, log=0x40))
    assert encode(addr).hex() == (
        "09000000010000002800000001000000020000001000000000000000200000000000000030000000000000004000000000000000"
    )
    table = Message(FrontendRequest.SET_MEM_TABLE, MemoryTable((Region(1, 2, 3, 4),)), (0,), Flag.NEED_REPLY)
    assert encode(table).hex() == (
        "05000000090000002800000001000000000000000100000000000000020000000000000003000000000000000400000000000000"
    )
    assert encode(Message(FrontendRequest.GET_CONFIG, ConfigSpace(8, b"ab"))).hex() == (
        "18000000010000000e000000080000000200000000000000" + "6162"
    )
    assert encode(Message(FrontendRequest.GET_VRING_BASE, VringState(1, 7), flags=Flag.REPLY)).hex() == (
        "0b00000005000000080000000100000007000000"
    )


def test_peers_that_send_padding_are_understood() -> None:
    """QEMU pads the in-flight description to 24 bytes, others do not; some send the whole array of regions."""
    area = InflightArea(0x1000, 0, 2, 128)
    assert InflightArea.unpack(area.pack()[:20]) == area
    assert InflightArea.unpack(area.pack()) == area
    table = MemoryTable((Region(1, 2, 3, 4),))
    assert MemoryTable.unpack(table.pack() + bytes(7 * 32)) == table
