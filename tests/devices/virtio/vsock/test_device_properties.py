"""The device against any sequence of well-formed packets of a guest: what it answers, and never more than the credit it has.

A model says what each packet is owed (VIRTIO 1.2 §5.10.6.4 and .5). The host's program takes what comes, writes what the test
tells it to, and ends nothing, so that all ends are the guest's doing.
"""

from __future__ import annotations

import asyncio
import contextlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiovmm.devices.virtio.vsock.packet import (
    HEADER_SIZE,
    HOST_CID,
    MASK32,
    SHUTDOWN_BOTH,
    SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND,
    STREAM,
    Header,
    Op,
)
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.vsock.guest import CID, make_device

BUFFER = 4096
LISTENING, SILENT, PROBE = 80, 81, 7777
WRITE = -1  # a step of the host's program, among the guest's packets
CREDIT = st.sampled_from([0, 1, 100, BUFFER, 1 << 16, MASK32])
FORWARDED = st.one_of(st.none(), st.just(0), st.integers(0, MASK32))  # None: what is true
PACKETS = st.builds(
    Header,
    src_cid=st.sampled_from([CID] * 8 + [0, 2**64 - 1]),
    dst_cid=st.sampled_from([HOST_CID] * 8 + [CID, 7]),
    src_port=st.sampled_from([5, 5, MASK32]),
    dst_port=st.sampled_from([LISTENING] * 5 + [SILENT]),
    length=st.sampled_from([0, 1, 100, BUFFER, BUFFER + 1]),
    type=st.sampled_from([STREAM] * 8 + [0, 2]),
    op=st.sampled_from(
        [WRITE] * 4 + [Op.REQUEST] * 3 + [*Op] * 2 + [Op.RW] * 4 + [Op.CREDIT_UPDATE] * 3 + [0, 8, 0xFFFF]
    ),
    flags=st.sampled_from([0, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, SHUTDOWN_SEND, SHUTDOWN_BOTH, 4, MASK32]),
    buf_alloc=CREDIT,
)
STEPS = st.lists(st.tuples(PACKETS, FORWARDED), min_size=40, max_size=120)  # hypothesis alone makes lists of about five


class Known:
    """A connection as the guest knows it. `said`: the credit of the packet before the last, and of the last."""

    def __init__(self, header: Header) -> None:
        self.shutdown = 0
        self.received = 0
        self.said = [(header.buf_alloc, header.fwd_cnt)] * 2

    def hear(self, header: Header) -> None:
        """The guest sends this on it."""
        self.said = [self.said[1], (header.buf_alloc, header.fwd_cnt)]

    def take(self, size: int) -> None:
        """The device sends payload: some credit that it was told must have room for that."""
        self.received += size
        assert any((self.received - fwd) & MASK32 <= alloc for alloc, fwd in self.said), (self.received, self.said)


class Model:
    """What the guest has open, and what a packet of it is answered with."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], Known] = {}

    def answer(self, h: Header) -> Op | None:
        """Follow a packet. None: no answer is due."""
        key = h.src_port, h.dst_port
        if h.src_cid != CID:
            return None
        if key not in self.known or h.dst_cid != HOST_CID or h.type != STREAM:
            return self._stray(h, key)
        known = self.known[key]
        known.hear(h)
        if h.op == Op.SHUTDOWN:
            known.shutdown |= h.flags & SHUTDOWN_BOTH
        fits = h.length <= BUFFER and not known.shutdown & SHUTDOWN_SEND
        if h.op == Op.CREDIT_UPDATE or (h.op == Op.RW and fits):
            return None
        if h.op == Op.SHUTDOWN and known.shutdown != SHUTDOWN_BOTH:
            return None
        if h.op == Op.CREDIT_REQUEST:
            return Op.CREDIT_UPDATE
        del self.known[key]
        return None if h.op == Op.RST else Op.RST

    def _stray(self, h: Header, key: tuple[int, int]) -> Op | None:
        if h.op == Op.RST:
            return None
        if (h.op, h.dst_cid, h.type, h.dst_port) == (Op.REQUEST, HOST_CID, STREAM, LISTENING):
            self.known[key] = Known(h)
            return Op.RESPONSE
        return Op.RST


class Wire:
    """Packets on the rings, one at a time."""

    def __init__(self, harness: Harness) -> None:
        self._rx, self._tx = harness.queues[0], harness.queues[1]
        self._seen: list[tuple[Header, int]] = []
        for _ in range(60):
            self._rx.add(writable=[HEADER_SIZE, BUFFER])

    async def send(self, header: Header) -> None:
        payload = bytes(header.length)
        self._tx.add([header.pack(), payload] if payload else [header.pack()])
        self._rx.kick()
        self._tx.kick()
        await self._tx.used()

    async def answers(self) -> list[tuple[Header, int]]:
        """What the device has sent since the last call: headers with sizes of payload. A stray packet's RST tells that it has
        answered all before that."""
        await self.send(Header(CID, HOST_CID, 1, PROBE, op=Op.RW))
        seen: list[tuple[Header, int]] = []
        while not any(h.src_port == PROBE for h, _ in seen):
            for used in await self._rx.used():
                header = Header.parse(used.data)
                assert used.length == HEADER_SIZE + header.length
                seen.append((header, header.length))
                self._rx.add(writable=[HEADER_SIZE, BUFFER])
            self._rx.kick()
        return [(h, n) for h, n in seen if h.src_port != PROBE]


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
async def test_every_packet_gets_what_the_specification_says_and_the_guest_never_more_than_its_credit(
    steps: list[tuple[Header, int | None]],
) -> None:
    device, model = make_device(buffer=BUFFER), Model()
    writers: list[asyncio.StreamWriter] = []
    deaf = False  # some connection takes no more, so the program's writes would end it

    async def program(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
            await asyncio.Event().wait()

    async with Harness(device) as harness, await device.streams.listen(LISTENING, program) as server:
        wire = Wire(harness)
        for packet, forwarded in steps:
            if packet.op == WRITE:
                for writer in writers:
                    if not deaf and not writer.is_closing():
                        writer.write(bytes(packet.length))
                await asyncio.sleep(0)
                continue
            if packet.op == Op.SHUTDOWN and packet.flags & SHUTDOWN_RECEIVE:
                deaf = True
            known = model.known.get((packet.src_port, packet.dst_port))
            fwd = forwarded if forwarded is not None else known.received & MASK32 if known else 0
            packet = packet._replace(fwd_cnt=fwd)
            before = dict(model.known)
            due = model.answer(packet)
            await wire.send(packet)
            got = await wire.answers()
            direct = [h for h, _ in got if h.op in (Op.RST, Op.RESPONSE)]
            assert [h.op for h in direct] == [due] * (due in (Op.RST, Op.RESPONSE))
            assert all((h.dst_port, h.src_port) == (packet.src_port, packet.dst_port) for h in direct)
            assert due != Op.CREDIT_UPDATE or any(h.op == due and h.dst_port == packet.src_port for h, _ in got)
            for header, size in got:
                assert header.dst_cid == CID
                assert header.op in (Op.RST, Op.RESPONSE, Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST)
                if header.op == Op.RW:
                    (model.known | before)[header.dst_port, header.src_port].take(size)
            assert device.connections == len(model.known)
        assert harness.errors == []
        await wire.send(Header(CID, HOST_CID, 4000, LISTENING, op=Op.REQUEST, buf_alloc=BUFFER))
        assert [h.op for h, _ in await wire.answers() if h.dst_port == 4000] == [Op.RESPONSE]
        server.close()
