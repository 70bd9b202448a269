"""Frames of any size, in chains of any shape, through rings of any size, over every kind of socket: all arrive, in order."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiovmm.devices.virtio.net import NetDevice, SocketBackend
from aiovmm.devices.virtio.net import features as f
from aiovmm.virtqueue.features import RING_FEATURES
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.net_guest import NetGuest, random_cuts, ready, until
from tests.limits import HANGS

KINDS = {
    "seqpacket with headers": (socket.SOCK_SEQPACKET, True),
    "datagrams": (socket.SOCK_DGRAM, False),
    "stream": (socket.SOCK_STREAM, False),
}
START = st.sampled_from([0, 65500])
SEED = st.integers(0, 1 << 20)
SIZES = st.one_of(st.integers(14, 200), st.integers(1400, 1600), st.integers(14, 65550))
PROPERTY = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


class Peer:
    """The other end of the socket, which frames as the device's kind has it."""

    def __init__(self, sock: socket.socket, vnet_hdr: bool) -> None:
        self._sock = sock
        self._header = bytes(12 if vnet_hdr else 0)
        self._buffer = b""
        sock.setblocking(False)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    async def send_all(self, frames: list[bytes]) -> None:
        for frame in frames:
            await self.send(frame)

    async def send_raw(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    def pending(self) -> int:
        """How many messages wait; takes them."""
        n = 0
        while True:
            try:
                self._sock.recv(70000)
            except BlockingIOError:
                return n
            n += 1

    async def send(self, frame: bytes) -> None:
        loop = asyncio.get_running_loop()
        if self._sock.type == socket.SOCK_STREAM:
            await loop.sock_sendall(self._sock, len(frame).to_bytes(4, "big") + frame)
        else:
            await until(lambda: self._sent(self._header + frame))

    def _sent(self, message: bytes) -> bool:
        try:
            return self._sock.send(message) == len(message)
        except (BlockingIOError, OSError) as exc:
            if isinstance(exc, BlockingIOError) or exc.errno == 105:  # ENOBUFS
                return False
            raise

    async def receive(self) -> bytes:
        frames: list[bytes] = []
        await until(lambda: self._received(frames))
        return frames[0]

    def _received(self, frames: list[bytes]) -> bool:
        try:
            data = self._sock.recv(70000 if self._sock.type != socket.SOCK_STREAM else self._wanted())
        except BlockingIOError:
            return False
        if self._sock.type != socket.SOCK_STREAM:
            frames.append(data[len(self._header) :])
            return True
        self._buffer += data
        if len(self._buffer) < 4 or len(self._buffer) < 4 + int.from_bytes(self._buffer[:4], "big"):
            return self._received(frames)
        frames.append(self._buffer[4:])
        self._buffer = b""
        return True

    def _wanted(self) -> int:
        if len(self._buffer) < 4:
            return 4 - len(self._buffer)
        return 4 + int.from_bytes(self._buffer[:4], "big") - len(self._buffer)


def pair(name: str, queue_size: int) -> tuple[NetDevice, Peer]:
    kind, vnet_hdr = KINDS[name]
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    return NetDevice(SocketBackend(ours, vnet_hdr=vnet_hdr), queue_size=queue_size), Peer(theirs, vnet_hdr)


def receive_sizes(rand: random.Random, mergeable: bool) -> list[int]:
    """One receive chain: with 256 of them posted, half a ring holds the largest packet."""
    least = 600 if mergeable else 65600
    cuts = sorted(random_cuts(rand, least, 3))
    return [b - a for a, b in zip([0, *cuts], [*cuts, least + rand.randint(0, 1000)], strict=False)]


@pytest.mark.parametrize("name", KINDS)
@PROPERTY
@given(sizes=st.lists(SIZES, min_size=1, max_size=20), mergeable=st.booleans(), start=START, seed=SEED)
async def test_receiving(name: str, sizes: list[int], mergeable: bool, start: int, seed: int) -> None:
    rand = random.Random(seed)
    device, peer = pair(name, 256)
    features = (device.features | RING_FEATURES) & ~(0 if mergeable else f.MRG_RXBUF)
    frames = [rand.randbytes(size) for size in sizes]
    with peer:
        async with Harness(device, features=features, start=start, shuffle=rand) as harness:
            await ready(device)
            guest = NetGuest(harness, mergeable=mergeable, sizes=lambda: receive_sizes(rand, mergeable), indirect=True)
            guest.fill(256 if mergeable else 20)
            feeder = asyncio.ensure_future(peer.send_all(frames))
            for frame in frames:
                assert (await guest.receive()).frame == frame
            await feeder
            assert device.counters.rx_packets == len(frames)
            assert device.counters.rx_bytes == sum(sizes)
            assert device.counters.rx_dropped == 0


@pytest.mark.parametrize("name", KINDS)
@PROPERTY
@given(sizes=st.lists(SIZES, min_size=1, max_size=20), indirect=st.booleans(), start=START, seed=SEED)
async def test_sending(name: str, sizes: list[int], indirect: bool, start: int, seed: int) -> None:
    rand = random.Random(seed)
    device, peer = pair(name, 32)
    frames = [rand.randbytes(size) for size in sizes]
    got: list[bytes] = []

    async def collect() -> None:
        while len(got) < len(frames):
            got.append(await peer.receive())

    with peer:
        async with Harness(device, start=start, shuffle=rand) as harness:
            await ready(device)
            guest = NetGuest(harness, indirect=indirect)
            collector = asyncio.ensure_future(collect())
            for frame in frames:
                cuts = random_cuts(rand, 12 + len(frame))
                while len(guest.tx.free) < 8:
                    guest.tx.kick()
                    await guest.tx.used()
                guest.offer(frame, cuts=cuts)
                if rand.random() < 0.5:
                    guest.tx.kick()
            guest.tx.kick(force=True)
            await asyncio.wait_for(collector, HANGS)
            assert got == frames
            await guest.tx.used(guest.tx.outstanding)
            assert device.counters.tx_packets == len(frames)
            assert device.counters.tx_errors == device.counters.tx_dropped == 0


@PROPERTY
@given(
    headers=st.lists(st.tuples(st.binary(min_size=12, max_size=12), st.integers(0, 200)), max_size=30),
    features=st.integers(0, (1 << 23) - 1),
)
async def test_any_header_is_sent_or_counted(headers: list[tuple[bytes, int]], features: int) -> None:
    device, peer = pair("seqpacket with headers", 64)
    wanted = features & device.features
    if not device.accepts(wanted):
        wanted = 0
    with peer:
        async with Harness(device, features=wanted | RING_FEATURES) as harness:
            await ready(device)
            tx = harness.queues[1]
            for header, size in headers:
                tx.add([header + bytes(size)])
                tx.kick()
                await tx.used()
            c = device.counters
            assert c.tx_packets + c.tx_errors == len(headers)
            assert c.tx_packets == peer.pending()
            assert device.link


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 4), st.binary(max_size=40)), max_size=30))
async def test_any_command_is_answered(commands: list[tuple[int, bytes]]) -> None:
    device, peer = pair("datagrams", 64)
    with peer:
        async with Harness(device) as harness:
            await ready(device)
            for kind, data in commands:
                answer = await harness.request(2, [bytes([kind]) + data], [1])
                assert answer in (b"\0", b"\1")


@PROPERTY
@given(st.lists(st.binary(max_size=3000), max_size=10), SEED)
async def test_any_stream_of_a_peer_is_taken_or_ends_the_link(parts: list[bytes], seed: int) -> None:
    device, peer = pair("stream", 64)
    with peer:
        async with Harness(device) as harness:
            await ready(device)
            guest = NetGuest(harness)
            guest.fill()
            for part in parts:
                if device.link:
                    await peer.send_raw(part)
                guest.rx.poll()
                guest.fill()
                await asyncio.sleep(0)
            assert device.link or device.ended is not None
