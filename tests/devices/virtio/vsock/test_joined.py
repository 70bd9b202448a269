"""Packets that the guest offers together: their payloads arrive whole and in order, whether or not they are taken as one."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from aiovmm.devices.virtio.vsock.packet import Op
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.vsock.guest import Guest, Sock, make_device
from tests.limits import HANGS

Pair = tuple[Sock, asyncio.StreamReader]


@asynccontextmanager
async def connected(count: int = 1, **options: object) -> AsyncIterator[tuple[Guest, list[Pair]]]:
    """Connections of the guest, each with what the program reads of it."""
    device = make_device(**options)
    async with Harness(device) as harness, Guest(harness) as guest, await device.streams.listen(9) as server:
        pairs, writers = [], []
        for _ in range(count):
            sock = await guest.connect(9)
            reader, writer = await server.accept()
            pairs.append((sock, reader))
            writers.append(writer)  # dropped, it would close the connection
        yield guest, pairs


def offer(sock: Sock, payload: bytes, *, junk: bytes = b"", cut: int | None = None) -> None:
    """Put a packet on the ring, without a kick. `junk` stands behind it in its chain; `cut`: bytes of a descriptor."""
    header = sock.header(Op.RW, len(payload)).pack()
    step = cut or len(payload)
    parts = [payload[at : at + step] for at in range(0, len(payload), step)]
    sock.guest.harness.queues[1].add([header, *parts, *([junk] if junk else [])])


async def test_small_packets_of_several_connections_arrive_in_order() -> None:
    rng = random.Random(1)
    async with connected(3) as (guest, pairs):
        sent = [bytearray() for _ in pairs]
        for number in range(60):
            which = rng.randrange(3)
            payload = bytes([number]) * rng.randrange(1, 200)
            sent[which] += payload
            offer(pairs[which][0], payload)
        guest.harness.queues[1].kick()
        for (_, reader), data in zip(pairs, sent, strict=True):
            assert await reader.readexactly(len(data)) == data


async def test_what_stands_behind_a_payload_is_not_sent() -> None:
    async with connected() as (guest, [(sock, reader)]):
        for payload, junk in ((b"one", b""), (b"two", b"JUNK"), (b"three", b""), (b"four", b"")):
            offer(sock, payload, junk=junk)
        guest.harness.queues[1].kick()
        assert await reader.readexactly(15) == b"onetwothreefour"


async def test_more_descriptors_than_one_system_call_takes() -> None:
    data = random.Random(2).randbytes(4 * 120)
    async with connected() as (guest, [(sock, reader)]):
        for at in range(0, len(data), 120):
            offer(sock, data[at : at + 120], cut=2)
        guest.harness.queues[1].kick()
        assert await reader.readexactly(len(data)) == data


async def test_what_a_slow_program_does_not_take_is_kept_in_order() -> None:
    """The socket takes a part of the first run, and nothing of the second."""
    data = random.Random(3).randbytes(1 << 20)
    device = make_device(buffer=1 << 20)
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    theirs.setblocking(False)
    async with Harness(device) as harness, Guest(harness) as guest:
        device._switch.listeners[9] = lambda port, accepted: accepted(ours)
        sock = await guest.connect(9)
        for at in range(0, len(data), 8192):
            while len(guest.harness.queues[1].free) < 2:
                await guest.harness.queues[1].used()
            offer(sock, data[at : at + 8192])
            if at % 65536 == 57344:
                guest.harness.queues[1].kick()
        got = bytearray()
        async with asyncio.timeout(HANGS):
            while len(got) < len(data):
                with suppress(BlockingIOError):
                    got += theirs.recv(1 << 16)
                await asyncio.sleep(0)
        assert got == data
        theirs.close()


@pytest.mark.parametrize("each", [1000, 1025])
async def test_the_sum_is_held_to_the_credit(each: int) -> None:
    """64 packets against 64,000 bytes and a few: what fits arrives; what does not costs the connection."""
    async with connected(buffer=64_512) as (guest, [(sock, reader)]):
        for _ in range(64):
            offer(sock, bytes(each))
        guest.harness.queues[1].kick()
        if each * 64 <= 64_512:
            assert len(await reader.readexactly(64 * each)) == 64 * each
        else:
            await sock.wait("reset")
            with suppress(ConnectionResetError):
                assert len(await reader.read()) < 64 * each


async def test_control_packets_are_never_joined() -> None:
    async with connected() as (guest, [(sock, reader)]):
        tx = guest.harness.queues[1]
        offer(sock, b"before")
        tx.add([sock.header(Op.CREDIT_REQUEST).pack()])
        tx.add([sock.header(Op.CREDIT_REQUEST).pack()])
        offer(sock, b"after")
        tx.kick()
        assert await reader.readexactly(11) == b"beforeafter"
        await guest.until(lambda: any(header.op == Op.CREDIT_UPDATE for header in guest.log))


async def test_bytes_are_counted_in_both_directions() -> None:
    device = make_device()
    async with Harness(device) as harness, Guest(harness) as guest, await device.streams.listen(9) as server:
        sock = await guest.connect(9)
        reader, writer = await server.accept()
        for payload in (b"x" * 100, b"y" * 23):
            offer(sock, payload)
        guest.harness.queues[1].kick()
        await reader.readexactly(123)
        writer.write(b"z" * 77)
        await sock.recv_exactly(77)
        counters = device.counters
        assert (counters.connections, counters.tx_bytes, counters.rx_bytes) == (1, 123, 77)
        writer.close()
