"""Guests that break the protocol or the rings: they harm themselves alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import resource
from pathlib import Path

import pytest

from aiovmm.devices.virtio.vsock import VsockServer, to_guest
from aiovmm.devices.virtio.vsock.packet import HEADER_SIZE, HOST_CID, SHUTDOWN_SEND, Header, Op
from aiovmm.devices.virtio.vsock.to_guest import ToGuest
from aiovmm.errors import ChainError, GuestFault, HostError, StateError
from aiovmm.runtime.quota import BURST
from aiovmm.virtqueue.driver import WRITE, Descriptor
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.vsock.guest import CID, Guest, make_device
from tests.limits import HANGS


def header(op: int, length: int = 0, port: int = 5000, **fields: int) -> Header:
    return Header(CID, HOST_CID, port, 80, length, op=op, buf_alloc=65536)._replace(**fields)


@pytest.mark.parametrize(
    "packet",
    [
        [b""],
        [bytes(HEADER_SIZE - 1)],
        [header(Op.RW, 1).pack()],
        [header(Op.RW, 2**32 - 1).pack(), b"payload"],
        [header(Op.REQUEST, 7).pack(), b"short"],
    ],
    ids=["empty", "short", "no payload", "huge", "cut off"],
)
async def test_a_packet_that_is_not_there_harms_its_own_connection_alone(packet: list[bytes]) -> None:
    """Without a header it is dropped; one that claims more than it has resets its connection, whatever credit that had."""
    device = make_device()
    async with Harness(device) as harness, Guest(harness) as guest, await device.streams.listen(80) as server:
        neighbour = await guest.connect(80)
        reader, writer = await server.accept()
        sock = await guest.connect(80)
        its_reader, _ = await server.accept()
        whole = b"".join(packet)
        if len(whole) >= HEADER_SIZE:
            packet[0] = Header.parse(packet[0])._replace(src_port=sock.port).pack()
        if packet == [b""]:
            harness.queues[1].add(writable=[64])
        else:
            harness.queues[1].add(packet)
        harness.queues[1].kick()
        if len(whole) >= HEADER_SIZE:
            await sock.wait("reset")
            with pytest.raises(ConnectionResetError):
                await its_reader.read()
        await neighbour.send(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.write(b"and so am I")
        assert await neighbour.recv_exactly(11) == b"and so am I"
        assert device.connections == (1 if len(whole) >= HEADER_SIZE else 2)


@pytest.mark.parametrize("size", [1, HEADER_SIZE - 1])
async def test_an_rx_buffer_without_room_for_a_header_breaks_the_device(size: int) -> None:
    async with Harness(make_device()) as harness:
        harness.queues[0].add(writable=[size])
        harness.queues[1].add([header(Op.RW).pack()])
        harness.queues[1].kick()
        assert isinstance(await harness.broken(), ChainError)


async def test_an_rx_buffer_without_room_for_a_payload_breaks_the_device() -> None:
    device = make_device()
    async with Harness(device) as harness:
        async with await device.streams.listen(80) as server:
            harness.queues[0].add(writable=[HEADER_SIZE])
            harness.queues[1].add([header(Op.REQUEST).pack()])
            harness.queues[1].kick()
            reader, writer = await server.accept()
            await harness.queues[0].used()
            harness.queues[0].add(writable=[HEADER_SIZE])
            writer.write(b"data")
            assert isinstance(await harness.broken(), ChainError)
            with pytest.raises(ConnectionResetError):
                await reader.read()
        writer.close()


async def test_a_header_in_many_pieces_and_a_payload_in_more() -> None:
    device = make_device()
    payload = random.Random(3).randbytes(3000)
    async with Harness(device) as harness, await device.streams.listen(80) as server:
        data = header(Op.REQUEST).pack()
        harness.queues[1].add([data[at : at + 5] for at in range(0, HEADER_SIZE, 5)])
        data = header(Op.RW, len(payload)).pack() + payload
        harness.queues[1].add([data[at : at + 13] for at in range(0, len(data), 13)], indirect=True)
        harness.queues[1].kick()
        reader, writer = await server.accept()
        assert await reader.readexactly(3000) == payload
        harness.queues[0].add(writable=[7] * 20)
        harness.queues[0].kick()
        (response,) = await harness.queues[0].used()
        assert Header.parse(response.data).op == Op.RESPONSE
        writer.write(payload)
        for _ in range(40):
            harness.queues[0].add(writable=[3] * 40, indirect=True)
        harness.queues[0].kick()
        received = b""
        while len(received) < 2000:
            for used in await harness.queues[0].used():
                received += used.data[HEADER_SIZE:]
        assert payload.startswith(received)
        writer.close()


async def test_more_than_the_credit_resets_the_connection() -> None:
    device = make_device(buffer=4096)
    async with Harness(device) as harness, Guest(harness) as guest, await device.streams.listen(80) as server:
        sock = await guest.connect(80)
        reader, writer = await server.accept()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        block = bytes(4096)
        while not sock.reset:  # the host's socket takes some; then there is no credit, which this guest ignores
            await guest.send(sock.header(Op.RW, len(block)), block)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        assert not device.connections


async def test_noise_of_any_kind() -> None:
    device = make_device()
    noise = random.Random(4)
    async with Harness(device) as harness, Guest(harness) as guest, await device.streams.listen(80) as server:
        sock = await guest.connect(80)
        reader, writer = await server.accept()
        for _ in range(3000):
            forged = Header(
                noise.choice((CID, CID, CID, 0, 2**64 - 1)),
                noise.choice((HOST_CID, HOST_CID, 7)),
                noise.randrange(5, 15),
                noise.choice((80, 81, 1 << 30)),
                op=noise.randrange(10),
                type=noise.choice((1, 1, 1, 2, 9)),
                flags=noise.getrandbits(3),
                buf_alloc=noise.getrandbits(32),
                fwd_cnt=noise.getrandbits(32),
            )
            payload = bytes(noise.randrange(100)) if forged.op == Op.RW else b""
            await guest.send(forged._replace(length=len(payload)), payload)
            await asyncio.sleep(0)
        writer.write(b"still here")
        assert await sock.recv_exactly(10) == b"still here"
        await sock.close()
        assert await reader.read() == b""
        writer.close()
        assert len(device._switch._ends) <= len(device._switch.muxer.connections) + 10


async def test_a_guest_that_connects_without_end_is_refused_and_costs_nothing() -> None:
    device = make_device(limit=8)
    fds = len(os.listdir("/proc/self/fd"))
    async with Harness(device) as harness, Guest(harness) as guest, await device.streams.listen(80):
        for port in range(1000):
            await guest.send(header(Op.REQUEST, port=port))
        await guest.until(lambda: len(guest.stray) == 1000)
        assert device.connections == 8
        assert len([h for h in guest.stray if h.op == Op.RST]) == 992
        assert len(os.listdir("/proc/self/fd")) <= fds + 16 + 12
    assert len(os.listdir("/proc/self/fd")) <= fds


async def test_connections_that_linger_count() -> None:
    """A guest that fills the host's buffers and closes, again and again, must not pile up what nobody reads."""
    device = make_device(limit=4)
    async with Harness(device) as harness, Guest(harness) as guest, await device.streams.listen(80):
        for _ in range(4):
            sock = await guest.connect(80)
            while sock.credit:
                await sock.send(bytes(min(sock.credit, 65536)))
                await asyncio.sleep(0.001)
            await sock.shutdown(3)
            await sock.wait("reset")
        assert device.connections == 0
        with pytest.raises(ConnectionRefusedError):
            await guest.connect(80)


async def test_a_guest_that_gives_no_rx_buffers_costs_bounded_memory() -> None:
    device = make_device()
    async with Harness(device) as harness:
        tx = harness.queues[1]
        for port in range(5000):
            tx.add([header(Op.RW, port=port).pack()])
            tx.kick()
            await tx.used()
        assert len(device._switch.muxer.resets) == 1024


async def test_a_guest_that_never_confirms_a_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiovmm.devices.virtio.vsock.switch._CLOSE_PATIENCE", 0.02)
    device = make_device()
    async with Harness(device) as harness, Guest(harness) as guest:
        guest.listen(7)
        _, writer = await device.streams.connect(7)
        sock = await guest.accept(7)
        writer.close()
        await sock.wait("reset")
        assert sock.peer_shutdown & SHUTDOWN_SEND
        assert device.connections == 0


async def test_a_process_without_descriptors_refuses_and_recovers(tmp_path: Path) -> None:
    device = make_device(path=tmp_path / "vsock")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Harness(device) as harness, Guest(harness) as guest, await device.streams.listen(80):
        used = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
        try:
            hoard = []
            with contextlib.suppress(OSError):
                while True:
                    hoard.append(os.dup(0))
            for port in (80, 81):  # one that the program listens on, one for a unix socket
                with pytest.raises(ConnectionRefusedError):
                    await guest.connect(port)
            with pytest.raises(HostError):
                await device.streams.connect(7)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in hoard:
                os.close(fd)
        assert (await guest.connect(80)).established


def open_files() -> int:
    gc.collect()  # of what earlier tests have dropped
    return len(os.listdir("/proc/self/fd"))


async def ask_and_reset(guest: Guest, times: int) -> None:
    guest.stray.clear()
    for port in range(5000, 5000 + times):
        await guest.send(header(Op.REQUEST, port=port))
        await guest.send(header(Op.RST, port=port))
    await guest.send(header(Op.RW, port=4000))  # no such connection: its RST tells that all before was seen
    await guest.until(lambda: any(seen.dst_port == 4000 for seen in guest.stray))


async def test_connections_that_are_reset_before_they_are_accepted_leave_nothing() -> None:
    device = make_device()
    async with Harness(device) as harness, Guest(harness) as guest, await device.streams.listen(80) as server:
        await ask_and_reset(guest, 1)  # with the first comes what watches them all
        before = open_files()
        await ask_and_reset(guest, 300)
        assert open_files() <= before
        sock = await guest.connect(80)
        _, writer = await server.accept()  # not one of those that are over
        writer.write(b"data")
        assert await sock.recv() == b"data"
        writer.close()


async def test_connections_that_nobody_accepts_are_refused_beyond_the_backlog() -> None:
    device = make_device()
    async with Harness(device) as harness, Guest(harness) as guest, await device.streams.listen(80) as server:
        for _ in range(128):
            await guest.connect(80)
        with pytest.raises(ConnectionRefusedError):
            await guest.connect(80)
        _, writer = await server.accept()
        await guest.connect(80)
        writer.close()


async def test_callbacks_that_run_on_bound_what_a_guest_can_have_open() -> None:
    device = make_device(limit=8)
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.close()

    async with Harness(device) as harness, Guest(harness) as guest:
        before = open_files() + 1  # what watches the connections
        async with await device.streams.listen(80, slow) as server:
            await ask_and_reset(guest, 100)
            assert open_files() <= before + 8 + 1  # and one that a loop may keep
            go_on.set()
            await guest.until(lambda: open_files() <= before + 1)
            await guest.connect(80)
            server.close()


async def test_callbacks_run_for_as_many_connections_as_the_device_may_have() -> None:
    device = make_device(limit=150)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with Harness(device) as harness, Guest(harness) as guest, await device.streams.listen(80, hold):
        for _ in range(150):
            await guest.connect(80)
        with pytest.raises(ConnectionRefusedError):
            await guest.connect(80)


async def test_requests_for_connections_leave_the_loop_its_turns() -> None:
    """Each has sockets made, and a task: few in a turn, and none is lost."""
    device = make_device()
    async with Harness(device) as harness, Guest(harness) as guest:
        called = 0

        async def callback(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal called
            called += 1
            writer.close()

        await device.streams.listen(80, callback)
        tx = harness.queues[1]
        for port in range(5000, 5050):
            tx.add([header(Op.REQUEST, port=port, dst_port=80).pack()])
        tx.kick()
        a_turn = []
        while called < 50:
            before = device.connections + called
            await asyncio.sleep(0)
            a_turn.append(device.connections + called - before)
        assert max(a_turn) <= 8
        await guest.until(lambda: not device.connections)


async def test_what_programs_send_leaves_the_loop_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock: one on which each batch takes a second."""
    batches: list[int] = []
    pump, fill = ToGuest.pump, ToGuest._fill

    def counted_pump(self: ToGuest) -> None:
        batches.append(0)
        pump(self)

    def counted_fill(self: ToGuest, count: int) -> int:
        batches[-1] += 1
        return fill(self, count)

    monkeypatch.setattr(ToGuest, "pump", counted_pump)
    monkeypatch.setattr(ToGuest, "_fill", counted_fill)
    monkeypatch.setattr(to_guest, "perf_counter", itertools.count().__next__)
    device = make_device()
    async with Harness(device) as harness, await device.streams.listen(80) as server:
        tx, rx = harness.queues[1], harness.queues[0]
        for _ in range(rx.size):
            rx.add(writable=[256])
        for port in range(5000, 5003):
            tx.add([header(Op.REQUEST, port=port).pack()])
        tx.kick()
        writers = [(await server.accept())[1] for _ in range(3)]
        for writer in writers:
            writer.write(bytes(60000))
        while rx.outstanding:
            rx.poll()
            await asyncio.sleep(0)
        for writer in writers:
            writer.transport.abort()
    assert sum(batches) > 3
    assert max(batches) == 1


async def test_handlers_that_fail_by_a_guests_doing_are_told_of_so_many_times() -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["message"]))
    device = make_device()
    async with Harness(device) as harness, Guest(harness) as guest:
        ended = 0

        async def callback(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            nonlocal ended
            try:
                await reader.readexactly(1)
            finally:
                ended += 1

        await device.streams.listen(80, callback)
        for port in range(5000, 5000 + 2 * BURST):
            await guest.send(header(Op.REQUEST, port=port, dst_port=80))
            await guest.until(lambda: bool(device.connections))
            await guest.send(header(Op.RST, port=port, dst_port=80))
            await guest.until(lambda: not device.connections)
        await guest.until(lambda: ended == 2 * BURST)
        await asyncio.sleep(0)
    assert told == ["the handler of vsock port 80 failed"] * BURST


async def accepted(harness: Harness, server: VsockServer) -> asyncio.StreamWriter:
    """A connection of a guest that has no rx buffer left."""
    harness.queues[0].add(writable=[HEADER_SIZE])
    harness.queues[1].add([header(Op.REQUEST).pack()])
    harness.queues[1].kick()
    _, writer = await server.accept()
    await harness.queues[0].used()
    return writer


async def test_an_rx_buffer_outside_memory_breaks_the_device_when_a_program_sends() -> None:
    device = make_device()
    async with Harness(device) as harness, await device.streams.listen(80) as server:
        writer = await accepted(harness, server)
        harness.queues[0].add_raw([Descriptor(1 << 40, 4096, WRITE)])
        writer.write(b"data")
        assert isinstance(await harness.broken(), GuestFault)
        writer.close()


async def test_what_a_program_sends_waits_for_rx_buffers() -> None:
    device = make_device()
    async with Harness(device) as harness, await device.streams.listen(80) as server:
        writer = await accepted(harness, server)
        assert device._rings is not None
        starved = device._rings._to_guest._starved
        for _ in range(3):
            writer.write(b"data")
            await asyncio.wait_for(starved.wait(), HANGS)
            harness.queues[0].add(writable=[HEADER_SIZE + 100])
            harness.queues[0].kick()
            (used,) = await harness.queues[0].used()
            assert used.data[HEADER_SIZE:] == b"data"
        writer.close()


async def test_a_small_ring_is_never_asked_for_more_than_there_is_room_for() -> None:
    device = make_device()
    async with Harness(device, queue_sizes=(2, 16, 2)) as harness, await device.streams.listen(80) as server:
        writer = await accepted(harness, server)
        assert device._rings is not None
        batch = device._rings._to_guest._batch
        room = batch.max_chains
        for _ in range(3):
            writer.write(b"data")
            harness.queues[0].add(writable=[HEADER_SIZE + 100])
            harness.queues[0].kick()
            await harness.queues[0].used()
            assert batch.max_chains <= room == 2
        writer.close()


async def test_a_guest_that_asks_for_connections_leaves_descriptors_to_others() -> None:
    """Its neighbours' resets, and the program itself, need new ones."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    device, neighbour = make_device(), make_device()
    kept: list[asyncio.StreamWriter] = []
    async with (
        Harness(device) as harness,
        Guest(harness) as guest,
        await device.streams.listen(80, lambda reader, writer: kept.append(writer)),
        Harness(neighbour) as its_harness,
        Guest(its_harness) as other,
    ):
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        try:
            refused = 0
            for _ in range(300):
                try:
                    await guest.connect(80)
                except ConnectionRefusedError:
                    refused += 1
            assert 0 < refused < 300
            reserve = [os.dup(0) for _ in range(100)]  # what another guest's reset takes
            for fd in reserve:
                os.close(fd)
            guest.listen(7)
            with pytest.raises(HostError, match="share of"):
                await asyncio.gather(*(device.streams.connect(7) for _ in range(300)))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        other.listen(7)
        _, writer = await neighbour.streams.connect(7)
        for each in (*kept, writer):
            each.close()


async def test_who_waits_for_a_guest_hears_how_it_ended() -> None:
    device = make_device()
    await device.open()
    waiting = asyncio.create_task(device.streams.connect(7, timeout=None))
    await asyncio.sleep(0)
    device.guest_ended("VM 'a' has ended (shutdown)")
    for attempt in (waiting, device.streams.connect(7)):
        with pytest.raises(StateError, match=r"VM 'a' has ended \(shutdown\)"):
            await attempt
    await device.close()
