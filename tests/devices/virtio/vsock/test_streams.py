"""What a program and a guest see of each other through `Vsock`."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiovmm.devices.virtio.vsock import VsockDevice, rings
from aiovmm.devices.virtio.vsock.packet import SHUTDOWN_RECEIVE, SHUTDOWN_SEND, Op
from aiovmm.errors import HostError, StateError, UsageError
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.vsock.guest import Guest, Sock, make_device
from tests.limits import HANGS
from tests.vm.guest import until

SIZE = 8 << 20


@asynccontextmanager
async def running(device: VsockDevice | None = None) -> AsyncIterator[tuple[VsockDevice, Guest]]:
    device = device or make_device()
    async with Harness(device) as harness, Guest(harness) as guest:
        yield device, guest


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Sock, VsockDevice]]:
    async with running() as (device, guest):
        guest.listen(7)
        reader, writer = await device.streams.connect(7)
        yield reader, writer, await guest.accept(7), device


async def pour(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(50_000))
        await writer.drain()
        await asyncio.sleep(0)


async def test_the_guest_reads_its_context_id() -> None:
    device = make_device()
    assert device.read_config(0, 8) == (42).to_bytes(8, "little")
    assert device.read_config(4, 8) == bytes(8)


async def test_both_directions_at_once() -> None:
    data = random.Random(1).randbytes(SIZE)

    async def send_from_host(writer: asyncio.StreamWriter) -> None:
        for at in range(0, SIZE, 100_000):
            writer.write(data[at : at + 100_000])
            await writer.drain()
        writer.write_eof()

    async def send_from_guest(sock: Sock) -> None:
        await sock.send(data)
        await sock.shutdown(SHUTDOWN_SEND)

    async with connected() as (reader, writer, sock, device):
        _, _, to_host, to_guest = await asyncio.gather(
            send_from_host(writer), send_from_guest(sock), reader.read(), sock.recv_all()
        )
        assert hashlib.sha256(to_host).digest() == hashlib.sha256(to_guest).digest() == hashlib.sha256(data).digest()
        await sock.close()
        writer.close()
        await writer.wait_closed()
        assert device.connections == 0


async def test_the_host_ends_its_direction_first() -> None:
    async with connected() as (reader, writer, sock, _):
        writer.write(b"question")
        writer.write_eof()
        assert await sock.recv_all() == b"question"
        assert sock.peer_shutdown == SHUTDOWN_SEND
        await sock.send(b"answer")
        await sock.close()
        assert await reader.read() == b"answer"


async def test_the_guest_ends_its_direction_first() -> None:
    async with connected() as (reader, writer, sock, _):
        await sock.send(b"question")
        await sock.shutdown(SHUTDOWN_SEND)
        assert await reader.read() == b"question"
        writer.write(b"answer")
        writer.close()
        assert await sock.recv_all() == b"answer"


async def test_a_guest_that_reads_no_more_breaks_the_hosts_pipe() -> None:
    async with connected() as (_, writer, sock, _):
        await sock.shutdown(SHUTDOWN_RECEIVE)
        with pytest.raises(ConnectionError):
            await pour(writer)


async def test_a_host_that_closes_with_unread_data() -> None:
    async with connected() as (_, writer, sock, device):
        await sock.send(bytes(1000))
        writer.close()
        await sock.wait("peer_shutdown")
        with pytest.raises(BrokenPipeError):
            await sock.send(bytes(1 << 20))
        await sock.close()
        assert device.connections == 0


async def test_what_the_guest_sent_before_it_closed_arrives() -> None:
    rng, data = random.Random(2), bytearray()
    async with connected() as (reader, _, sock, device):
        (link,) = device._switch.links.values()
        full = link.connection.buffer
        while len(link.backlog) < full:  # the host is slow: all buffers on the way fill up
            await sock.guest.until(lambda: sock.credit or len(link.backlog) == full)
            part = rng.randbytes(sock.credit)
            data += part
            await sock.send(part)
        await sock.close()
        assert device.connections == 0
        assert await reader.read() == data


async def test_streams_that_are_dropped_close_nobody_elses_descriptor() -> None:
    """Garbage is collected between the end of the connection and the loop's next look at it, and the number is given anew."""
    async with running() as (device, guest):
        guest.listen(7)
        for _ in range(20):
            box: list[object] = list(await device.streams.connect(7))
            sock = await guest.accept(7)
            await guest.send(sock.header(Op.RST))
            await guest.until(lambda: device.connections == 0)
            box.append(box)
            del box
            gc.collect()
            others = [os.eventfd(0) for _ in range(8)]
            for _ in range(5):
                await asyncio.sleep(0)
            for other in others:
                os.close(other)  # raises OSError if somebody has


async def test_a_slow_host_holds_the_guest_back_and_no_more_than_the_buffer_is_kept() -> None:
    async with connected() as (reader, _, sock, device):
        sender = asyncio.create_task(sock.send(bytes(2 << 20)))
        link = next(iter(device._switch.links.values()))
        await sock.guest.until(lambda: sock.credit == 0 and link.connection.unforwarded)
        assert len(link.backlog) <= 64 << 10
        assert not sender.done()
        assert len(await reader.readexactly(2 << 20)) == 2 << 20
        await sender


async def test_a_slow_guest_holds_the_host_back() -> None:
    async with connected() as (_, writer, sock, _):
        writer.write(bytes(2 << 20))
        await sock.guest.until(lambda: len(sock.data) == sock.buffer)
        assert Op.CREDIT_REQUEST in [h.op for h in sock.guest.log]
        assert len(await sock.recv_exactly(2 << 20)) == 2 << 20
        await writer.drain()


async def test_nobody_listens_in_the_guest() -> None:
    async with running() as (device, _):
        with pytest.raises(ConnectionRefusedError):
            await device.streams.connect(9)
        assert device.connections == 0


async def test_the_host_waits_for_the_guest_to_listen() -> None:
    async with running() as (device, guest):
        connecting = asyncio.create_task(device.streams.connect(9, wait=True))
        await guest.until(lambda: sum(h.op == Op.REQUEST for h in guest.log) >= 2)
        guest.listen(9)
        _, writer = await connecting
        writer.close()


async def test_the_host_waits_for_the_driver() -> None:
    device = make_device()
    await device.open()
    with pytest.raises(TimeoutError):
        await device.streams.connect(9, timeout=0.01)
    await device.close()
    with pytest.raises(StateError):
        await device.streams.connect(9)


async def test_a_guest_that_never_answers() -> None:
    device = make_device()
    async with Harness(device):  # no rx buffers: it does not even hear of it
        with pytest.raises(TimeoutError):
            await device.streams.connect(9, timeout=0.01)
        await asyncio.sleep(0)
    assert device.connections == 0


async def test_a_cancelled_connect_leaves_nothing() -> None:
    async with running() as (device, guest):
        connecting = asyncio.create_task(device.streams.connect(9, wait=True))
        await guest.until(lambda: guest.log)
        connecting.cancel()
        await asyncio.wait([connecting])
        guest.listen(9)
        _, writer = await device.streams.connect(9)
        writer.close()


async def test_the_guest_connects_to_a_callback() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    async with running() as (device, guest), await device.streams.listen(80, echo):
        sock = await guest.connect(80)
        await sock.send(b"hello")
        await sock.shutdown(SHUTDOWN_SEND)
        assert await sock.recv_all() == b"hello"
        with pytest.raises(UsageError):
            await device.streams.listen(80)


async def test_the_guest_connects_to_an_acceptor() -> None:
    async with running() as (device, guest):
        async with await device.streams.listen(80) as server:
            sock = await guest.connect(80)
            reader, writer = await server.accept()
            writer.write(b"hello")
            assert await sock.recv_exactly(5) == b"hello"
            waiting = asyncio.create_task(server.accept())
            await asyncio.sleep(0)
        with pytest.raises(StateError):
            await waiting
        with pytest.raises(ConnectionRefusedError):
            await guest.connect(80)
        writer.write(b"again")  # what was accepted stays
        assert await sock.recv_exactly(5) == b"again"
        await sock.close()
        assert await reader.read() == b""


@pytest.mark.parametrize("turns", range(5))
async def test_a_connection_that_comes_to_who_has_just_given_up_is_the_next_ones(turns: int) -> None:
    async with running() as (device, guest), await device.streams.listen(80) as server:
        sock = await guest.connect(80)
        await sock.send(b"first")
        accepting = asyncio.create_task(server.accept())
        for _ in range(turns):
            await asyncio.sleep(0)
        accepting.cancel()
        (came,) = await asyncio.gather(accepting, return_exceptions=True)
        if isinstance(came, asyncio.CancelledError):
            came = await asyncio.wait_for(server.accept(), HANGS)
        assert not isinstance(came, BaseException)
        reader, writer = came
        assert await reader.readexactly(5) == b"first"
        writer.write(b"hello")
        assert await sock.recv_exactly(5) == b"hello"
        writer.close()


@pytest.mark.parametrize("how", ["the server closes", "the guest resets it"])
async def test_a_connection_that_nobody_accepts_after_all_is_closed(how: str) -> None:
    async with running() as (device, guest), await device.streams.listen(80) as server:
        sock = await guest.connect(80)
        accepting = asyncio.create_task(server.accept())
        await asyncio.sleep(0)
        accepting.cancel()
        await asyncio.wait([accepting])
        if how == "the server closes":
            server.close()
            assert await sock.recv_all() == b""
        else:
            await guest.send(sock.header(Op.RST))
        await guest.until(lambda: device.connections == 0)
        assert not server._waiting


async def test_a_server_that_ends_before_its_callback_has_begun_closes_the_connection() -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("it was cancelled before")

    async with running() as (device, _):
        ends: list[socket.socket] = []

        def accepted(sock: Any, aborted: object = None) -> None:
            ends.append(sock)

        async with await device.streams.listen(80, never):
            device._switch.listeners[80](80, accepted)
        (ours,) = ends
        ours.setblocking(False)
        assert ours.recv(1) == b""
        ours.close()


async def test_a_callback_that_fails_closes_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise RuntimeError("no")

    async with running() as (device, guest), await device.streams.listen(80, fail):
        sock = await guest.connect(80)
        assert await sock.recv_all() == b""
        assert (await guest.connect(80)).established
    assert "vsock port 80" in caplog.text


async def test_the_limit_of_connections() -> None:
    async with running(make_device(limit=3)) as (device, guest), await device.streams.listen(80):
        guest.listen(7)
        streams = [await device.streams.connect(7) for _ in range(2)]
        await guest.connect(80)
        with pytest.raises(ConnectionRefusedError):
            await guest.connect(80)
        with pytest.raises(HostError):
            await device.streams.connect(7)
        streams[0][1].close()
        await (await guest.accept(7)).close()
        await guest.connect(80)


async def test_five_hundred_connections_at_once() -> None:
    sizes = [1000 * (i % 40) + 1 for i in range(500)]

    async def host(device: VsockDevice, size: int) -> None:
        reader, writer = await device.streams.connect(7, timeout=50)
        writer.write(size.to_bytes(4, "little") * 1000 + bytes(size))
        writer.write_eof()
        assert await reader.read() == size.to_bytes(4, "little")
        writer.close()
        await writer.wait_closed()

    async def serve(sock: Sock) -> None:
        size = int.from_bytes((await sock.recv_exactly(4000))[:4], "little")
        assert len(await sock.recv_all()) == size
        await sock.send(size.to_bytes(4, "little"))
        await sock.close()

    async with running() as (device, guest):
        guest.listen(7)
        tasks = [asyncio.create_task(host(device, size)) for size in sizes]
        socks = [await guest.accept(7) for _ in sizes]
        assert device.connections == 500
        await asyncio.gather(*tasks, *(serve(sock) for sock in socks))
        assert device.connections == 0


async def test_a_reset_ends_all_connections_and_no_listener() -> None:
    device = make_device()
    async with Harness(device) as harness, await device.streams.listen(80) as server:
        async with Guest(harness) as guest:
            guest.listen(7)
            reader, writer = await device.streams.connect(7)
            await guest.connect(80)
            accepted, _ = await server.accept()
            late = asyncio.create_task(device.streams.connect(7, wait=True))
            await harness.reset()
            for end in (reader, accepted):
                with pytest.raises(ConnectionResetError):
                    await end.read()
            writer.close()
        assert device.connections == 0
        await harness.start()
        async with Guest(harness) as guest:
            guest.listen(7)
            sock = await guest.connect(80)
            await server.accept()
            assert sock.established
            (await late)[1].close()


async def test_resets_under_load_leave_nothing() -> None:
    device = make_device()
    async with Harness(device) as harness:
        for round_ in range(200):
            async with Guest(harness) as guest:
                guest.listen(7)
                _, writer = await device.streams.connect(7)
                sock = await guest.accept(7)
                pouring = asyncio.create_task(pour(writer))
                await sock.recv_exactly(1000 * (round_ % 50) + 1)
                await harness.reset()
                with pytest.raises(ConnectionError):
                    await pouring
                writer.close()
            assert device.connections == 0
            assert not device._switch.links
            assert not device._switch._ends
            await harness.start()


async def test_the_guest_is_told_that_the_transport_was_reset() -> None:
    async with running() as (device, guest):
        guest.listen(7)
        reader, _ = await device.streams.connect(7)
        device.transport_reset()
        assert await guest.harness.request(2, [], [4]) == bytes(4)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert device.connections == 0


async def test_a_guest_is_asked_for_new_connections_when_it_has_forgotten_the_old_ones() -> None:
    """One that it accepted before it looked at the event would be forgotten with them, and nobody told."""
    async with running() as (device, guest):
        guest.listen(7)
        events = guest.harness.queues[2]
        for _ in range(2):
            events.add([], [4])
        events.kick()
        await until(lambda: device.streams.live)
        device.transport_reset()
        connecting = asyncio.create_task(device.streams.connect(7))
        (told,) = await events.used()
        assert told.data == bytes(4)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not guest.log, "it has not given the buffer back"
        events.add([], [4])
        events.kick()
        reader, writer = await connecting
        sock = await guest.accept(7)
        writer.write(b"new")
        assert await sock.recv_exactly(3) == b"new"
        device.transport_reset()  # for the second buffer, of which it gave one back
        with pytest.raises(ConnectionResetError):
            await reader.read()


@pytest.mark.parametrize("buffers", [0, 1])
async def test_a_guest_that_does_not_heed_a_reset_is_asked_all_the_same(
    buffers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rings, "PATIENCE", 0.05 if buffers else 1000)
    async with running() as (device, guest):
        guest.listen(7)
        for _ in range(buffers):
            guest.harness.queues[2].add([], [4])
        guest.harness.queues[2].kick()
        await until(lambda: device.streams.live)
        device.transport_reset()
        _, writer = await device.streams.connect(7)
        await guest.accept(7)
        writer.close()


@pytest.mark.parametrize("first", ["the host closes", "the guest ends its direction", "the guest's bytes are unread"])
async def test_all_bytes_come_before_the_one_shutdown(first: str) -> None:
    """A driver may take any SHUTDOWN, of whichever direction, as the end of all."""
    data = os.urandom(200_000)
    async with connected() as (reader, writer, sock, _):
        if first == "the guest ends its direction":
            await sock.shutdown(SHUTDOWN_SEND)
            assert await reader.read() == b""
        elif first == "the guest's bytes are unread":
            await sock.send(bytes(1000))
        writer.write(data)
        writer.close()
        assert await sock.recv_exactly(len(data)) == data
        await sock.wait("peer_shutdown")
        packets = [p for p in sock.guest.log if p.dst_port == sock.port]
        shutdowns = [at for at, p in enumerate(packets) if p.op == Op.SHUTDOWN]
        assert len(shutdowns) == 1
        assert packets[shutdowns[0]].flags == SHUTDOWN_RECEIVE | SHUTDOWN_SEND
        assert not any(p.op == Op.RW for p in packets[shutdowns[0] :])


async def test_a_guest_that_goes_on_sending_hears_that_nobody_reads() -> None:
    """Bytes for it are left, for which it has given no credit: it must not wait for the end of all to stop sending."""
    data = os.urandom(150_000)
    async with connected() as (_, writer, sock, _):
        writer.write(data)
        writer.close()
        await sock.guest.until(lambda: len(sock.data) == sock.buffer)  # all its credit
        with pytest.raises(BrokenPipeError):
            await sock.send(bytes(4 << 20))
        assert sock.peer_shutdown == SHUTDOWN_RECEIVE
        assert await sock.recv_exactly(len(data)) == data
        await sock.guest.until(lambda: sock.peer_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND)


async def test_the_end_of_the_guest_is_the_end_of_its_connections_behind_all_that_it_has_sent() -> None:
    async with connected() as (reader, writer, sock, device):
        data = random.Random(2).randbytes(40_000)
        await sock.send(data)
        asked = asyncio.create_task(device.streams.connect(99, timeout=None))  # the guest does not answer that
        await asyncio.sleep(0)
        device.guest_ended("VM 'a' has ended (panic)")
        async with asyncio.timeout(HANGS):
            assert await reader.read() == data
            with pytest.raises((ConnectionError, StateError), match="has ended"):
                await asked
            with pytest.raises(ConnectionError):
                await pour(writer)


async def test_a_socket_of_somebody_elses_is_the_hosts_end() -> None:
    async with running() as (device, guest):
        held = device._switch.share.held
        ours, theirs = socket.socketpair()
        with ours:
            with pytest.raises(ConnectionRefusedError):
                await device.streams.join(7, theirs)
            assert theirs.fileno() == -1
            assert ours.recv(1) == b""  # the device has let go of it
        guest.listen(7)
        ours, theirs = socket.socketpair()
        await device.streams.join(7, theirs)
        sock = await guest.accept(7)
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(b"question")
        assert await sock.recv() == b"question"
        await sock.send(b"answer")
        assert await reader.readexactly(6) == b"answer"
        await sock.close()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        await until(lambda: device._switch.share.held == held)


async def test_a_socket_that_cannot_be_joined_is_closed() -> None:
    async with running() as (device, _):
        for port in (-1, 7):
            ours, theirs = socket.socketpair()
            if port == 7:
                device.streams.end("it is over")
            with ours, pytest.raises(UsageError):
                await device.streams.join(port, theirs)
            assert theirs.fileno() == -1
