"""A front end that does as it likes: the server ends that connection with a clear error, serves the next, leaks nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from aiovmm.errors import PeerError
from aiovmm.testing.vhost_user_backend import VhostUserServer
from aiovmm.vhost_user.messages import Message, encode
from aiovmm.vhost_user.payloads import ConfigSpace, InflightArea, MemoryTable, Region, VringAddr, VringState, Word
from aiovmm.vhost_user.protocol import F_PROTOCOL_FEATURES, FrontendRequest, ProtocolFeature
from aiovmm.virtqueue.features import VERSION_1
from tests.pci.echo import Echo, until
from tests.vhost_user.bench import Guest
from tests.vhost_user.test_serving import echo_frontend

F = FrontendRequest
USER = 0x7000_0000
SIZE = 1 << 20
ALL = ProtocolFeature(sum(ProtocolFeature))
HELLO = [Message(F.SET_PROTOCOL_FEATURES, Word(ALL)), Message(F.SET_FEATURES, Word(VERSION_1 | F_PROTOCOL_FEATURES))]
RING = [
    Message(F.SET_VRING_NUM, VringState(0, 64)),
    Message(F.SET_VRING_ADDR, VringAddr(0, USER, USER + 0x2000, USER + 0x4000)),
]


class Peer:
    """A connection to the server, and what it complained of."""

    def __init__(self, server: VhostUserServer, errors: list[Exception]) -> None:
        self.server = server
        self.errors = errors
        self.sock = socket.socket(socket.AF_UNIX)
        self.memory = os.memfd_create("memory")
        os.ftruncate(self.memory, SIZE)
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self.sock.connect(server.path)

    def say(self, *messages: Message, fds: Sequence[int] = ()) -> None:
        for message in messages:
            socket.send_fds(self.sock, [encode(message)], fds or message.fds)

    def remember(self, size: int = SIZE, offset: int = 0, *, gpa: int = 0) -> None:
        table = MemoryTable((Region(gpa, size, USER, offset),))
        self.say(Message(F.SET_MEM_TABLE, table, (self.memory,)))

    async def complaint(self) -> str:
        await until(lambda: bool(self.errors) or self.server.session is None)
        await until(lambda: bool(self.errors))
        error = self.errors.pop(0)
        assert isinstance(error, PeerError), error
        return str(error)

    def close(self) -> None:
        self.sock.close()
        os.close(self.memory)
        os.close(self.event)


@pytest.fixture
async def peer(tmp_path: Path, no_fd_left: None) -> AsyncIterator[Peer]:
    """At the end a good front end is served as if nothing had been."""
    errors: list[Exception] = []
    path = tmp_path / "vu.sock"
    async with VhostUserServer(Echo(), path, on_error=errors.append) as server:
        peer = Peer(server, errors)
        yield peer
        peer.close()
        await until(lambda: server.session is None)
        async with Guest(echo_frontend(path)) as guest:
            await guest.driver.start()
            assert await guest.driver.request(0, [b"abc"], [3]) == b"cba"
        assert errors == []


async def test_a_region_longer_than_its_file(peer: Peer) -> None:
    """Every access beyond the end would be a SIGBUS."""
    peer.remember(2 * SIZE)
    assert "longer than its file" in await peer.complaint()


async def test_a_region_that_cannot_be_mapped(peer: Peer) -> None:
    peer.remember(SIZE, gpa=1)
    assert "not page-aligned" in await peer.complaint()


async def test_regions_that_overlap(peer: Peer) -> None:
    rows = (Region(0, SIZE, USER, 0), Region(4096, 4096, USER * 2, 0))
    peer.say(Message(F.SET_MEM_TABLE, MemoryTable(rows), (peer.memory, peer.memory)))
    assert "overlaps" in await peer.complaint()


async def test_memory_that_is_no_memory(peer: Peer) -> None:
    table = MemoryTable((Region(0, 4096, USER, 0),))
    peer.say(Message(F.SET_MEM_TABLE, table, (peer.event,)))
    assert "longer than its file" in await peer.complaint()


@pytest.mark.parametrize("kind", [F.SET_VRING_KICK, F.SET_VRING_CALL, F.SET_VRING_ERR])
async def test_a_ring_given_a_file_instead_of_an_eventfd(peer: Peer, kind: FrontendRequest) -> None:
    """A read or write of it could block."""
    peer.say(*HELLO)
    peer.remember()
    peer.say(*RING, Message(kind, Word(0), (peer.memory,)))
    assert "no eventfd" in await peer.complaint()


async def test_a_channel_that_is_no_socket(peer: Peer) -> None:
    peer.say(*HELLO, Message(F.SET_BACKEND_REQ_FD, fds=(peer.event,)))
    assert "no socket" in await peer.complaint()


async def test_an_in_flight_record_that_is_too_small(peer: Peer) -> None:
    peer.say(*HELLO, Message(F.SET_INFLIGHT_FD, InflightArea(SIZE, 0, 2, 64), (peer.event,)))
    assert "are needed" in await peer.complaint()


async def test_more_fds_than_any_message_has(peer: Peer) -> None:
    peer.say(Message(F.SET_OWNER), fds=[peer.event] * 200)
    assert "more than 8 file descriptors" in await peer.complaint()


async def test_fds_in_the_middle_of_a_message(peer: Peer) -> None:
    data = encode(Message(F.SET_FEATURES, Word(0)))
    for part in (data[:5], data[5:12], data[12:15], data[15:]):
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(peer.sock, [part], [peer.event] * 3)
        await asyncio.sleep(0.01)
    assert "file descriptors" in await peer.complaint()


async def test_a_ring_that_is_started_anew_beside_one_that_runs(peer: Peer) -> None:
    """Its device waits for the kick that it had before, whose open file the front end keeps."""
    peer.say(Message(F.SET_FEATURES, Word(VERSION_1)))  # without the protocol's bit rings are enabled from the start
    peer.remember()
    for index in (1, 0):
        at = USER + index * 0x8000
        peer.say(Message(F.SET_VRING_NUM, VringState(index, 16)))
        peer.say(Message(F.SET_VRING_ADDR, VringAddr(index, at, at + 0x2000, at + 0x4000)))
    await until(lambda: peer.server.session is not None)
    assert peer.server.session is not None
    rings = peer.server.session.state.rings
    for _ in range(4):
        for index in (1, 0):
            peer.say(Message(F.SET_VRING_KICK, Word(index), (peer.event,)))
            await until(lambda ring=rings[index]: ring.live)  # type: ignore[misc]
            await asyncio.sleep(0.01)
        for index in (1, 0):
            peer.say(Message(F.GET_VRING_BASE, VringState(index)))
            await until(lambda ring=rings[index]: not ring.live)  # type: ignore[misc]
    assert peer.errors == []


async def test_going_away_in_the_middle_of_a_message_with_fds(peer: Peer) -> None:
    socket.send_fds(peer.sock, [encode(Message(F.SET_OWNER))[:4]], [peer.event] * 5)
    await until(lambda: peer.server.session is not None)
    peer.sock.shutdown(socket.SHUT_RDWR)
    await until(lambda: peer.server.session is None)
    assert peer.errors == []


async def test_going_away_with_a_running_ring(peer: Peer) -> None:
    peer.say(*HELLO)
    peer.remember()
    peer.say(*RING, Message(F.SET_VRING_KICK, Word(0), (peer.event,)), Message(F.SET_VRING_ENABLE, VringState(0, 1)))
    echo = peer.server.device
    assert isinstance(echo, Echo)
    await until(lambda: echo.running == 1)
    peer.sock.shutdown(socket.SHUT_RDWR)
    await until(lambda: peer.server.session is None)
    assert echo.running == 0


async def test_memory_that_is_cut_off_under_a_running_ring(peer: Peer) -> None:
    """Nothing that is served from then on would be the guest's."""
    peer.say(*HELLO)
    peer.remember()
    await until(lambda: peer.server.session is not None and peer.server.session.rings.memory is not None)
    os.ftruncate(peer.memory, 0)
    peer.say(*RING, Message(F.SET_VRING_KICK, Word(0), (peer.event,)), Message(F.SET_VRING_ENABLE, VringState(0, 1)))
    assert "memory is lost" in await peer.complaint()
    await until(lambda: peer.server.session is None)


async def test_an_interrupt_that_could_make_us_wait(peer: Peer) -> None:
    """Its eventfd is the front end's as well, who fills it and makes it blocking."""
    call = os.eventfd(0)
    peer.say(*HELLO)
    peer.remember()
    peer.say(*RING, Message(F.SET_VRING_CALL, Word(0), (call,)), Message(F.SET_VRING_KICK, Word(0), (peer.event,)))
    peer.say(Message(F.SET_VRING_ENABLE, VringState(0, 1)))
    echo = peer.server.device
    assert isinstance(echo, Echo)
    await until(lambda: echo.running == 1)
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(call)  # what the start of the ring has signalled
    os.eventfd_write(call, (1 << 64) - 2)
    os.set_blocking(call, True)
    assert peer.server.session is not None
    peer.server.session.rings.fds[0].pulse()
    assert os.eventfd_read(call) == (1 << 64) - 1
    os.close(call)


async def test_a_corrupt_in_flight_record_harms_only_its_owner(peer: Peer) -> None:
    """Everything in flight, in a loop of next pointers, with indices beyond the ring."""
    record = os.memfd_create("record")
    entry = struct.pack("<B5xHQ", 1, 0xFFFF, 0)
    os.write(record, struct.pack("<QHHHH", 0, 1, 64, 0xFFFF, 0x1234) + entry * 64 + bytes(64))
    peer.say(*HELLO, Message(F.SET_INFLIGHT_FD, InflightArea(os.fstat(record).st_size, 0, 1, 64), (record,)))
    os.close(record)
    peer.remember()
    peer.say(*RING, Message(F.SET_VRING_KICK, Word(0), (peer.event,)), Message(F.SET_VRING_ENABLE, VringState(0, 1)))
    await until(lambda: bool(peer.errors) or _served(peer) == 64)
    peer.errors.clear()


def _served(peer: Peer) -> int:
    session = peer.server.session
    return sum(q.counters.pushed for q in session.rings._queues) if session is not None else 0


async def test_a_configuration_access_beyond_the_space(peer: Peer) -> None:
    peer.say(*HELLO, Message(F.GET_CONFIG, ConfigSpace(200, bytes(50))))
    peer.sock.setblocking(False)
    answer = await asyncio.get_running_loop().sock_recv(peer.sock, 100)
    assert answer[12 + 12 :] == bytes(50)  # nothing is there: zeros, as the device's configuration reads


@pytest.mark.parametrize("seed", range(20))
async def test_noise(peer: Peer, seed: int) -> None:
    """Bytes, and legal messages in an illegal order, with fds of every kind."""
    rng = random.Random(seed)
    peer.sock.setblocking(False)
    files = [peer.memory, peer.event, peer.sock.fileno()]
    for _ in range(rng.randrange(1, 30)):
        request = rng.choice(list(FrontendRequest))
        body = rng.choice([b"", rng.randbytes(8), struct.pack("<II", rng.randrange(3), 64), rng.randbytes(40)])
        data = struct.pack("<III", request, rng.choice([1, 1, 9, 5]), len(body)) + body
        fds = [rng.choice(files) for _ in range(rng.choice([0, 0, 1, 1, 2, 9]))]
        try:
            socket.send_fds(peer.sock, [data], fds)
        except (BrokenPipeError, ConnectionResetError):
            break
        await asyncio.sleep(0)
    peer.sock.close()
    peer.sock = socket.socket()
    await until(lambda: peer.server.session is None)
    assert all(isinstance(error, PeerError) for error in peer.errors), peer.errors
    peer.errors.clear()
