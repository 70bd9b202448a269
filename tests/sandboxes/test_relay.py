"""The filter in its place, between a card and passt."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import statistics
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import cast

import pytest

from aiovmm.devices.virtio.net import NetDevice, PasstBackend
from aiovmm.runtime.turns import turns_of
from aiovmm.sandboxes.firewall import Verdict, relay
from aiovmm.sandboxes.firewall.relay import _judged
from aiovmm.sandboxes.firewall.streams import Streams
from aiovmm.sandboxes.network import Network
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.net_guest import NetGuest, ready, until
from tests.limits import HANGS
from tests.sandboxes.frames import GATEWAY, datagram, segment, syn

needs_passt = pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed (apt-get install passt)")


class Every:
    """Lets frames pass whose first byte is even, and answers the others."""

    streams = Streams(lambda name: False)

    def from_guest(self, frame: bytes, now: float) -> Verdict:
        if frame == b"fail":
            raise RuntimeError("a fault of the filter's")
        return Verdict(True) if frame[0] % 2 == 0 else Verdict(False, b"no " + frame[:1])

    def to_guest(self, frame: bytes, now: float) -> Verdict:
        return Verdict(True)


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


@asynccontextmanager
async def relayed(wall: object = None) -> AsyncIterator[tuple[asyncio.Task[None], socket.socket, socket.socket]]:
    """The relay, and the ends of the guest and of passt."""
    (guest, inner), (outer, passt) = socket.socketpair(), socket.socketpair()
    for sock in (guest, inner, outer, passt):
        sock.setblocking(False)
    task = asyncio.create_task(relay(wall or Every(), inner, outer))  # type: ignore[arg-type]
    with guest, passt:
        yield task, guest, passt
        task.cancel()
        await asyncio.wait([task])
    assert inner.fileno() == outer.fileno() == -1


async def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    async with asyncio.timeout(HANGS):
        while len(data) < size and (part := await asyncio.get_running_loop().sock_recv(sock, size - len(data))):
            data += part
    return data


async def test_frames_pass_whole_and_in_order_and_others_are_answered() -> None:
    loop = asyncio.get_running_loop()
    frames = [bytes([n % 256]) * (n * 37 % 3000 + 1) for n in range(500)]
    async with relayed() as (_, guest, passt):
        data = framed(*frames)

        async def send() -> None:
            for at in range(0, len(data), 7001):  # across the bounds of frames
                await loop.sock_sendall(guest, data[at : at + 7001])

        sending = asyncio.create_task(send())
        passed = framed(*(frame for frame in frames if frame[0] % 2 == 0))
        assert await read(passt, len(passed)) == passed
        await sending
        assert await read(guest, 8) == framed(b"no \x01")
        back = framed(bytes(65550), b"odd", b"\x01")
        await loop.sock_sendall(passt, back)
        while (said := await read(guest, 8)).startswith(b"\0\0\0\x04no"):
            pass
        assert said + await read(guest, len(back) - 8) == back


@pytest.mark.parametrize(
    "data", [framed(b"fail"), b"\0\1\0\xff", framed(b"\0" * 10)[:-1]], ids=["a fault", "too large", "half"]
)
async def test_whatever_goes_wrong_leaves_no_way(data: bytes) -> None:
    async with relayed() as (task, guest, passt):
        guest.send(data + b"\0" * 5000 if data[0] == 0 and data[1] == 1 else data)
        if data.endswith(b"\0"):
            guest.shutdown(socket.SHUT_WR)
        assert await read(passt, 1) == b""
        await asyncio.wait([task])
        assert (task.exception() is None) == data.endswith(b"\0")
        assert await read(guest, 1) == b""


async def test_who_does_not_read_is_waited_for_and_keeps_nobody() -> None:
    """passt reads nothing: the guest is held up, what comes for it is not."""
    loop = asyncio.get_running_loop()
    async with relayed() as (_, guest, passt):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.sock_sendall(guest, framed(bytes(60000)) * 100), 0.3)
        await loop.sock_sendall(passt, framed(b"through"))
        assert await read(guest, 11) == framed(b"through")


async def test_guests_that_flood_share_the_turns_of_the_loop() -> None:
    """However many they are: a turn of the loop is a few guests' at most."""
    loop, judging, counts = asyncio.get_running_loop(), set[int](), list[int]()
    turns = turns_of(loop)  # which are there as long as somebody keeps them

    class Drops(Every):
        def __init__(self, number: int) -> None:
            self._number = number

        def from_guest(self, frame: bytes, now: float) -> Verdict:
            judging.add(self._number)
            return Verdict(False)

    async with asyncio.timeout(40), AsyncExitStack() as stack:
        for number in range(16):
            _, guest, _ = await stack.enter_async_context(relayed(Drops(number)))
            flood = asyncio.create_task(loop.sock_sendall(guest, framed(*[b"x"] * 200_000)))
            stack.callback(flood.cancel)
        seen = set[int]()
        while len(counts) < 300 or len(seen) < 16:
            await asyncio.sleep(0)
            seen |= judging
            if judging:
                counts.append(len(judging))
            judging.clear()
    assert statistics.median(counts) <= 4
    del turns


class Counted(Every):
    """A frame takes a second of `clock`."""

    def __init__(self) -> None:
        self.clock, self.judged = 0.0, 0

    def from_guest(self, frame: bytes, now: float) -> Verdict:
        self.clock, self.judged = self.clock + 1, self.judged + 1
        return Verdict(False)


def test_small_frames_without_end_leave_the_loop_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Counted()
    monkeypatch.setattr(sys.modules[_judged.__module__], "time", SimpleNamespace(monotonic=lambda: wall.clock))
    waiting = bytearray(framed(*[b"x"] * 5 + [b""]) + b"\0")
    for judged in range(1, 7):
        assert _judged(waiting, wall.from_guest) == (b"", b"", b"")
        assert wall.judged == judged
    assert _judged(waiting, wall.from_guest) == (b"", b"", b"")
    assert wall.judged == 6
    assert waiting == b"\0"


class Server(asyncio.DatagramProtocol):
    """Echoes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)  # uvloop's is none by name

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        self.transport.sendto(b"echo " + data, peer)


@asynccontextmanager
async def card(network: Network) -> AsyncIterator[tuple[NetDevice, NetGuest]]:
    device = network.device()
    await device.open()
    async with Harness(device) as harness:
        await ready(device)
        guest = NetGuest(harness)
        guest.fill()
        yield device, guest


async def payload_of(guest: NetGuest, protocol: int) -> bytes:
    """Of the next packet of IPv4 with that protocol."""
    async with asyncio.timeout(HANGS):
        while True:
            frame = (await guest.receive()).frame
            if frame[12:14] == b"\x08\x00" and frame[23] == protocol:
                return bytes(frame[34 : 14 + int.from_bytes(frame[16:18], "big")])


@needs_passt
async def test_the_host_by_passt_where_that_is_allowed() -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    try:
        async with card(Network(host=True, allow=())) as (_, guest):
            await guest.send(datagram(GATEWAY, b"hello", port))
            assert (await payload_of(guest, 17))[8:] == b"echo hello"
            await guest.send(syn("203.0.113.1"))
            assert (await payload_of(guest, 1))[:2] == b"\3\x0d"
        async with card(Network(allow=("10.0.0.0/8",))) as (_, guest):
            await guest.send(datagram("127.0.0.1", b"hello", port))
            assert (await payload_of(guest, 1))[:2] == b"\3\x0d"
    finally:
        transport.close()


_FIN, _SYN, _PSH, _ACK = 1, 2, 8, 16


class Peer:
    """A guest's end of a connection of TCP over IPv4, in frames: as much of it as somebody needs who loses nothing."""

    def __init__(self, guest: NetGuest, port: int, source_port: int) -> None:
        self._guest = guest
        self._ports = {"port": port, "source_port": source_port}
        self._sent, self._came = 1000, 0
        self.ended = False  # the other end has sent all

    async def connect(self) -> None:
        await self._send(_SYN)
        self._sent += 1
        await self._hear()
        await self._send(_ACK)

    async def send(self, data: bytes, *, last: bool = False) -> None:
        await self._send(_PSH | _ACK | _FIN * last, data)
        self._sent += len(data) + last

    async def read(self) -> bytes:
        """Until the other end has sent all."""
        data = b""
        while not self.ended:
            data += await self._hear()
            await self._send(_ACK)
        return data

    async def _send(self, flags: int, data: bytes = b"") -> None:
        numbers = {"number": self._sent, "acknowledged": self._came}
        await self._guest.send(segment(GATEWAY, flags, data, **self._ports, **numbers))

    async def _hear(self) -> bytes:
        """The next segment that brings something new."""
        while True:
            payload = await payload_of(self._guest, 6)
            number, flags, data = int.from_bytes(payload[4:8], "big"), payload[13], payload[payload[12] >> 4 << 2 :]
            assert not flags & 4, "the connection was reset"
            if flags & _SYN:
                self._came = number + 1 & 0xFFFFFFFF
                return b""
            if number == self._came and (data or flags & _FIN):
                self._came = number + len(data) + (flags & _FIN) & 0xFFFFFFFF
                self.ended = bool(flags & _FIN)
                return data


@needs_passt
@pytest.mark.parametrize("filtered", [True, False], ids=["by the filter", "without"])
async def test_each_side_hears_of_the_others_end(filtered: bool) -> None:
    """The guest goes on sending when the other has ended, and ends then. The other way round is passt's own affair: that of
    Debian 12 heeds no acknowledgement behind a guest's end, and never comes to the end of the answer."""
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(1)
        writer.write(b"answer" * 1000)
        writer.write_eof()
        heard.set_result(first + await reader.read())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with card(Network(host=True, allow=() if filtered else None)) as (_, guest), asyncio.timeout(40):
            peer = Peer(guest, port, 40001)
            await peer.connect()
            await peer.send(b"a")
            assert await peer.read() == b"answer" * 1000
            await peer.send(b" question", last=True)
            assert await heard == b"a question"


@needs_passt
async def test_a_death_of_passt_takes_the_link_down_through_the_filter() -> None:
    async with card(Network()) as (device, _):
        assert isinstance(device.backend, PasstBackend)
        assert device.backend.pid is not None
        os.kill(device.backend.pid, signal.SIGKILL)
        await until(lambda: not device.link)


@needs_passt
async def test_a_fault_of_the_filter_is_told_and_takes_the_link_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object) -> Verdict:
        raise RuntimeError("a fault")

    monkeypatch.setattr("aiovmm.sandboxes.firewall.firewall.Firewall.from_guest", fails)
    async with card(Network()) as (device, guest):
        told: list[Exception] = []
        device._notify_error = told.append
        await guest.send(struct.pack(">Q", 0) * 8)
        await until(lambda: not device.link and told)
        assert "what is between the guest and passt has failed" in str(told[0])
