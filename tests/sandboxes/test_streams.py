"""Questions to name servers by TCP: with a kernel's own TCP as the guest's, and with what no kernel says."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.sandboxes.firewall import Firewall, Rules, relay
from aiovmm.sandboxes.firewall.answers import Answers, _ask, name_servers
from aiovmm.sandboxes.firewall.packet import dissect
from aiovmm.sandboxes.firewall.streams import Streams
from aiovmm.sandboxes.firewall.tcp import Segment, segment_of
from tests.devices.virtio.netns import ip, namespace
from tests.limits import HANGS
from tests.reset_peer import reset_connection
from tests.sandboxes import frames
from tests.sandboxes.frames import GATEWAY, GATEWAY6, GUEST, GUEST6, RESOLVER, RESOLVER6, packed, query
from tests.sandboxes.name_server import WEB, served
from tests.test_awake import StoppedLoop, run_stopped

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 2, 0x1000


def firewall(*allow: str) -> Firewall:
    return Firewall(
        Rules(allow),
        guest=(GUEST, GUEST6),
        gateways=(GATEWAY, GATEWAY6),
        resolvers=(RESOLVER, RESOLVER6),
        is_own=lambda address: False,
    )


# -- with a kernel


@pytest.fixture
def tap() -> Iterator[int]:
    """A card as a sandbox's guest has it, in a network of its own with this thread; its other end."""
    with namespace():
        ip("link set lo up")
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"t0", _IFF_TAP | _IFF_NO_PI))
        ip("address add 10.0.2.15/24 dev t0")
        ip("link set t0 up")
        ip(f"neigh add {RESOLVER} lladdr 9a:55:00:00:00:02 dev t0")
        ip(f"neigh add {GATEWAY} lladdr 9a:55:00:00:00:02 dev t0")
        yield fd
        os.close(fd)


@asynccontextmanager
async def network(tap: int, wall: Firewall, *, loses: int = 0) -> AsyncIterator[None]:
    """The filter behind the card. Every frame to the guest whose number `loses` divides is lost."""
    loop = asyncio.get_running_loop()
    (guest, inner), (outer, passt) = socket.socketpair(), socket.socketpair()
    for sock in (guest, inner, outer, passt):
        sock.setblocking(False)

    async def to_guest() -> None:
        reader, _ = await asyncio.open_connection(sock=guest.dup())
        number = 0
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            frame = await reader.readexactly(size)
            number += 1
            if not loses or number % loses:
                os.write(tap, frame)

    def from_guest() -> None:
        frame = os.read(tap, 65536)
        guest.send(len(frame).to_bytes(4, "big") + frame)

    carrying = [asyncio.ensure_future(relay(wall, inner, outer)), asyncio.ensure_future(to_guest())]
    loop.add_reader(tap, from_guest)
    try:
        with guest, passt:
            yield
            assert not carrying[0].done(), carrying[0]
    finally:
        loop.remove_reader(tap)
        for task in carrying:
            task.cancel()
        await asyncio.wait(carrying)


async def ask(writer: asyncio.StreamWriter, name: str, number: int = 7) -> None:
    message = query(name, number=number)
    writer.write(len(message).to_bytes(2, "big") + message)
    await writer.drain()


async def heard(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


@pytest.mark.parametrize("loses", [0, 7])
async def test_names_are_resolved_by_tcp_as_by_udp(tap: int, monkeypatch: pytest.MonkeyPatch, loses: int) -> None:
    """Answers of any size; several questions on a connection, whose other direction may have ended; and nothing of what may not
    be asked. The addresses may be reached then."""
    wall = firewall("*.example")
    async with asyncio.timeout(HANGS), network(tap, wall, loses=loses), served(monkeypatch) as servers:
        assert not wall.from_guest(frames.syn(WEB), 0.0).passes
        reader, writer = await asyncio.open_connection(RESOLVER, 53)
        await ask(writer, "3000.example")
        assert len(await heard(reader)) == 3000
        for size in (60000, 100, 65535):
            await ask(writer, f"{size}.web.example", size)
        writer.write_eof()
        answers = sorted([await heard(reader) for _ in range(3)], key=len)
        assert [len(answer) for answer in answers] == [100, 60000, 65535]
        assert [int.from_bytes(answer[:2], "big") for answer in answers] == [100, 60000, 65535]
        assert await reader.read() == b""
        writer.close()
        assert wall._allows(packed(WEB), asyncio.get_running_loop().time())
        asked = len(servers.asked)
        reader, writer = await asyncio.open_connection(RESOLVER, 53)
        await ask(writer, "100.evil.com")
        refused = await heard(reader)
        assert refused[3] & 15 == 5
        assert len(servers.asked) == asked
        writer.close()


async def test_more_questions_than_are_asked_at_a_time(tap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(HANGS), network(tap, firewall("*.example")), served(monkeypatch):
        reader, writer = await asyncio.open_connection(RESOLVER, 53)
        for number in range(150):
            await ask(writer, f"{100 + number}.example", number)
        found = {int.from_bytes((await heard(reader))[:2], "big") for _ in range(150)}
        assert found == set(range(150))
        writer.close()
        pairs = [await asyncio.open_connection(RESOLVER, 53) for _ in range(40)]  # the first of them are let go
        await ask(pairs[-1][1], "200.example")
        assert len(await heard(pairs[-1][0])) == 200
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await heard(pairs[0][0])
        for _, other in pairs:
            other.close()


async def test_nobody_answers(tap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(HANGS), network(tap, firewall("*.example")):
        monkeypatch.setattr(sys.modules[_ask.__module__], "name_servers", lambda _: ["127.0.0.1"])
        monkeypatch.setattr(sys.modules[_ask.__module__], "_PORT", 1)
        reader, writer = await asyncio.open_connection(RESOLVER, 53)
        await ask(writer, "100.example")
        assert (await heard(reader))[3] & 15 == 2
        writer.close()


async def test_what_is_no_question_ends_the_connection(tap: int) -> None:
    async with asyncio.timeout(HANGS), network(tap, firewall("*.example")):
        for data in (b"\0\x0c" + bytes(12), b"\xff\xff" + bytes(100), b"\0\0"):
            reader, writer = await asyncio.open_connection(RESOLVER, 53)
            writer.write(data)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await heard(reader)
            writer.transport.abort()
        with pytest.raises(ConnectionRefusedError):  # by ICMP
            await _refused()


async def _refused() -> None:
    try:
        await asyncio.open_connection(RESOLVER, 54)
    except OSError as exc:  # EHOSTUNREACH, as "administratively prohibited" is
        raise ConnectionRefusedError from exc


async def test_a_name_server_that_answers_what_it_was_not_asked_is_not_heard_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without end, and as fast as it can: nothing of that is waited for, so the loop would never have its turn."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(1000))
        with suppress(ConnectionError):
            await reader.read()  # until it is let go
        writer.close()

    async with asyncio.timeout(HANGS), await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        monkeypatch.setattr(sys.modules[_ask.__module__], "_PORT", server.sockets[0].getsockname()[1])
        with pytest.raises(ConnectionError, match="not asked"):
            await _ask("127.0.0.1", query("100.example", number=7))


def test_an_answer_that_came_while_nobody_ran_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question was given up in the moment in which it could be read."""

    async def asks(loop: StoppedLoop) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            said = await reader.readexactly(2 + len(asked.message))
            loop.away = 100.0
            for _ in range(20):  # of the loop's turns
                await asyncio.sleep(0)
            writer.write(said)
            writer.close()

        asked = cast(Any, SimpleNamespace(stream=SimpleNamespace(over=False), message=query("100.example")))
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            module = sys.modules[_ask.__module__]
            monkeypatch.setattr(module, "name_servers", lambda _: ["127.0.0.1"])
            monkeypatch.setattr(module, "_PORT", server.sockets[0].getsockname()[1])
            async with Answers(cast(Any, SimpleNamespace(streams=None)), cast(Any, None)) as answers:
                assert await answers._asked(asked) == asked.message

    run_stopped(asks)


async def test_a_name_server_that_resets_the_connection_before_it_is_asked_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with reset_connection() as streams:
        monkeypatch.setattr(asyncio, "open_connection", AsyncMock(return_value=streams))
        with pytest.raises(ConnectionError):
            await _ask("127.0.0.1", query("100.example"))


def test_which_name_servers_there_are(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    assert name_servers(path) == ["127.0.0.1"]
    lines = ["# nameserver 1.1.1.1", "nameserver", "nameserver nonsense", "nameserver 10.0.0.1", "search x"]
    path.write_text("\n".join([*lines, "nameserver fe80::1%eth0", *(f"nameserver 10.0.0.{n}" for n in range(2, 5))]))
    assert name_servers(path) == ["10.0.0.1", "fe80::1%eth0", "10.0.0.2"]


# -- without one


segments = st.tuples(
    st.integers(0, 3),  # the port
    st.sampled_from([2, 16, 24, 17, 4, 18, 0, 1, 25, 63]),
    st.one_of(st.integers(-3, 3000), st.integers(0, (1 << 32) - 1)),  # from what it should be
    st.one_of(st.integers(-3, 3000), st.integers(0, (1 << 32) - 1)),
    st.one_of(st.just(b""), st.binary(max_size=40), st.just(b"\0\x1d" + query("w.example")), st.just(bytes(9000))),
)


@given(st.lists(segments, max_size=60))
def test_no_guest_gets_at_more_than_it_may(said: list[tuple[int, int, int, int, bytes]]) -> None:
    """Whatever it says: what is kept for it is bounded, and only whole questions for what may be asked come out."""
    streams = Streams(lambda name: name == b"w.example")
    theirs = dict.fromkeys(range(4), 0)
    ours = dict.fromkeys(range(4), 0)
    for port, flags, number, acknowledged, data in said:
        numbers = (theirs[port] + number) % (1 << 32), (ours[port] + acknowledged) % (1 << 32)
        frame = frames.segment(
            RESOLVER, flags, data, port=53, source_port=port, number=numbers[0], acknowledged=numbers[1]
        )
        packet = dissect(frame)
        assert packet is not None
        for answer in streams.received(packet, 1.0):
            back = dissect(answer)
            assert back is not None
            segment = segment_of(back)
            assert segment is not None
            theirs[port], ours[port] = segment.acknowledged, segment.number
    assert all(asked.question.name == b"w.example" for asked in streams.asked)
    assert len(streams.asked) <= 60 * 4
    for stream in streams._open.values():
        assert len(stream.data) <= 8192
        assert stream.unread <= (64 << 10) + 8192


def talk(
    streams: Streams, flags: int, number: int, acknowledged: int = 0, data: bytes = b"", options: bytes = b""
) -> list[Segment]:
    """What is answered to a segment from port 1."""
    frame = frames.segment(
        RESOLVER, flags, options + data, port=53, source_port=1, number=number, acknowledged=acknowledged
    )
    packet = dissect(frame)
    assert packet is not None
    offset = bytes([0x50 + (len(options) // 4 << 4)])
    packet = packet._replace(payload=packet.payload[:12] + offset + packet.payload[13:])
    found = [segment_of(back) for answer in streams.received(packet, 1.0) if (back := dissect(answer)) is not None]
    return [segment for segment in found if segment is not None]


def test_nothing_is_kept_of_connections_that_a_guest_has_begun_again() -> None:
    streams = Streams(lambda name: True)
    for _ in range(100):
        (begun,) = talk(streams, 2, 100, data=bytes(9000))
        assert talk(streams, 17, 101, begun.number + 1)[-1].flags == 17  # both ends are said
    assert len(streams._under_way) == len(streams._open) == 1
    assert len(streams.waiting) == 1


def test_questions_of_connections_that_are_over_are_few() -> None:
    """A name server may take its time, and a guest begins others meanwhile."""
    streams = Streams(lambda name: True)
    message = query("w.example")
    many = (len(message).to_bytes(2, "big") + message) * 4
    for _ in range(100):
        (begun,) = talk(streams, 2, 100)
        talk(streams, 16, 101, begun.number + 1, many)
        talk(streams, 4, 101 + len(many))
    assert len(streams.asked) == 64
    (begun,) = talk(streams, 2, 100)
    answers = talk(streams, 16, 101, begun.number + 1, many)
    assert len(streams.asked) == 64
    failed = struct.pack(">HHHHHH", 7, 0x8182, 1, 0, 0, 0) + message[12:]
    assert b"".join(segment.data for segment in answers) == (len(failed).to_bytes(2, "big") + failed) * 4
    for asked in list(streams.asked):
        streams.answer(asked, None)
    streams.asked.clear()
    talk(streams, 16, 101 + len(many), begun.number + 1, many)
    assert len(streams.asked) == 4


async def test_nobody_is_asked_for_a_connection_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, asked_for, begun = firewall("w.example"), list[bytes](), asyncio.Event()

    async def never(server: str, message: bytes) -> bytes:
        asked_for.append(message[:2])
        begun.set()
        never_answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        return await never_answered

    async def write(frames: object) -> None:
        pass

    monkeypatch.setattr("aiovmm.sandboxes.firewall.answers._ask", never)
    monkeypatch.setattr("aiovmm.sandboxes.firewall.answers._AT_A_TIME", 1)
    monkeypatch.setattr("aiovmm.sandboxes.firewall.answers._PATIENCE", 0.01)
    monkeypatch.setattr("aiovmm.sandboxes.firewall.answers.name_servers", lambda path: ["192.0.2.1"])
    async with Answers(wall, write) as answers:
        for number in range(3):
            (begun_at,) = talk(wall.streams, 2, 100)
            message = query("w.example", number=number)
            many = len(message).to_bytes(2, "big") + message
            talk(wall.streams, 16, 101, begun_at.number + 1, many)
            if number:
                talk(wall.streams, 4, 101 + len(many))
            answers.look()
            if not number:
                await begun.wait()
                talk(wall.streams, 4, 101 + len(many))
        await asyncio.wait(answers._tasks)
    assert asked_for == [bytes(2)]


@pytest.mark.parametrize("mss", [0, 1, 64, 1220])
def test_no_guest_has_an_answer_cut_into_a_thousand_segments(mss: int) -> None:
    """All of them are made in one turn of the loop."""
    wall = firewall("*.example")
    (begun,) = talk(wall.streams, 2, 100, options=struct.pack(">BBH", 2, 4, mss))
    message = query("w.example")
    talk(wall.streams, 16, 101, begun.number + 1, len(message).to_bytes(2, "big") + message)
    answered = wall.answered(wall.streams.asked.popleft(), bytes(65535), 1.0)
    assert 65535 // 1220 < len(answered) <= 65537 // 536 + 1


def test_questions_that_are_refused_together_are_answered_together() -> None:
    streams = Streams(lambda name: False)
    (begun,) = talk(streams, 2, 100)
    message = query("w")
    many = (len(message).to_bytes(2, "big") + message) * 380
    answers = talk(streams, 16, 101, begun.number + 1, many)
    assert sum(len(segment.data) for segment in answers) == 380 * 21
    assert len(answers) < 20
    assert [
        segment.flags & 4 for segment in talk(streams, 16, 101 + len(many), begun.number + 1, many[:21] + bytes(2))
    ][-1], "what is no question ends the connection, behind the answers before it"


def test_a_segment_that_is_none() -> None:
    whole = frames.segment(RESOLVER, 2, b"", port=53, source_port=1, number=5, acknowledged=0)
    packet = dissect(whole)
    assert packet is not None
    assert segment_of(packet) == Segment(5, 0, 2, 65535, 536, b"")
    for offset in (0, 0x40, 0x60, 0xF0):
        assert segment_of(packet._replace(payload=packet.payload[:12] + bytes([offset]) + packet.payload[13:])) is None
