"""Receiving a few chains at a time, into as many as the last packets needed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiovmm.devices.virtio.net import NetDevice, SocketBackend, pump
from aiovmm.devices.virtio.net import features as f
from aiovmm.devices.virtio.net.port import Port
from aiovmm.errors import ChainError, GuestFault
from aiovmm.native import lib
from aiovmm.virtqueue.batch import Batch
from aiovmm.virtqueue.config import QueueConfig
from aiovmm.virtqueue.driver import NEXT, WRITE, Descriptor, DriverQueue
from aiovmm.virtqueue.features import EVENT_IDX, RING_FEATURES
from aiovmm.virtqueue.harness import Harness
from aiovmm.virtqueue.queue import Queue
from aiovmm.virtqueue.serving import Next
from tests.devices.virtio.net_guest import NetGuest, ready, until
from tests.limits import HANGS

SMALL = bytes(range(64))
LARGE = bytes(i % 251 for i in range(65536))


@asynccontextmanager
async def card(
    features: int | None = None, queue_size: int = 256
) -> AsyncIterator[tuple[Harness, Port, socket.socket]]:
    """A running device, its port, and the other end of its socket, which carries headers."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    device = NetDevice(SocketBackend(ours, vnet_hdr=True), queue_size=queue_size)
    with theirs:
        async with Harness(device, features=features) as harness:
            await ready(device)
            yield harness, device.backend.ports[0], theirs


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each native turn came to, in order."""
    seen: list[str] = []
    move = pump._Pump._move

    def moved(self: pump._Pump, call: Any, state: Any) -> int:
        status = move(self, call, state)
        which = "receive" if isinstance(self, pump.Receiver) else "send"
        seen.append(f"{which}: {self._turn.used} used, {self._turn.interrupt} interrupt")
        return status

    monkeypatch.setattr(pump._Pump, "_move", moved)
    return seen


def send(peer: socket.socket, frame: bytes) -> None:
    peer.send(bytes(12) + frame)


async def test_a_packet_for_buffers_in_more_pieces_than_there_is_room_for_at_first() -> None:
    """Two chains of sixteen pieces each, of a queue of four: the room grows for the second as it does for a first."""
    async with card(queue_size=4) as (harness, port, peer):
        guest = NetGuest(harness, sizes=lambda: [100] * 16, indirect=True)
        guest.fill(3)
        guest.rx.kick()
        send(peer, bytes(2500))
        await until(lambda: port.rx.packets or port.rx.dropped)
        assert (await guest.receive()).frame == bytes(2500)


@pytest.mark.parametrize("before", [0, 1, 40])
async def test_a_large_packet_after_small_ones_arrives_whole(before: int) -> None:
    async with card() as (harness, port, peer):
        guest = NetGuest(harness)
        guest.fill()
        for _ in range(before):
            send(peer, SMALL)
            assert (await guest.receive()).frame == SMALL
        assert port.rx.aim == (76 if before else 0)
        for frame, buffers in ((LARGE, 43), (SMALL, 1), (LARGE[:3000], 2), (LARGE[::-1], 43)):
            send(peer, frame)
            packet = await guest.receive()
            assert packet.frame == frame
            assert packet.header.num_buffers == buffers
        assert port.rx.dropped == 0


async def test_what_is_expected_grows_at_once_and_shrinks_slowly() -> None:
    async with card() as (harness, port, peer):
        guest = NetGuest(harness)
        guest.fill()
        seen = []
        for size in (64, 9000, *[64] * 60):
            send(peer, LARGE[:size])
            assert (await guest.receive()).frame == LARGE[:size]
            seen.append(port.rx.aim)
        assert seen[:3] == [76, 9012, 9012 - (9012 - 76) // 8]
        assert seen[1:] == sorted(seen[1:], reverse=True)
        assert seen[30] > 200
        assert seen[-1] < 100


async def test_lost_packets_say_nothing_of_those_to_come() -> None:
    async with card() as (harness, port, peer):
        guest = NetGuest(harness)
        guest.fill()
        peer.send(bytes(100_000))
        peer.send(bytes(20))
        send(peer, SMALL)
        assert (await guest.receive()).frame == SMALL
        assert (port.rx.aim, port.rx.dropped) == (76, 2)


async def test_a_packet_larger_than_expected_waits_for_chains_that_are_missing() -> None:
    async with card() as (harness, port, peer):
        guest = NetGuest(harness)
        guest.fill(1)
        send(peer, SMALL)
        assert (await guest.rx.used())[0].length == 76
        guest.fill(3)
        send(peer, LARGE[:9000])
        send(peer, SMALL)
        await until(lambda: port.rx.pending)
        assert port.rx.pending == 9012
        assert not guest.rx.poll()
        guest.fill(7)
        packet = await guest.receive()
        assert packet.frame == LARGE[:9000]
        assert packet.header.num_buffers == 6
        assert (await guest.receive()).frame == SMALL
        assert port.rx.dropped == 0


@pytest.mark.parametrize("pieces", [1, 17, 600])
async def test_chains_of_many_pieces(pieces: int) -> None:
    """Without mergeable buffers. 600 pieces: there is not room for the segments of two chains at once."""
    each = -(-65600 // pieces)
    sizes = (64, 65536, 64, 30000, 64)
    async with card(f.MAC | RING_FEATURES, queue_size=1024) as (harness, port, peer):
        guest = NetGuest(harness, mergeable=False, sizes=lambda: [each] * pieces, indirect=True)
        guest.fill(len(sizes))
        for size in sizes:
            send(peer, LARGE[:size])
        for used, size in zip(await guest.rx.used(len(sizes)), sizes, strict=True):
            assert used.data == bytes(10) + b"\1\0" + LARGE[:size]
        assert port.rx.dropped == 0


async def test_a_packet_that_does_not_fit_is_lost_and_the_chain_is_the_next_ones() -> None:
    async with card(f.MAC | RING_FEATURES) as (harness, port, peer):
        guest = NetGuest(harness, mergeable=False)
        guest.fill(1)
        send(peer, LARGE[:3000])
        send(peer, SMALL)
        assert (await guest.rx.used())[0].data[12:] == SMALL
        assert port.rx.dropped == 1


async def test_a_chain_in_more_pieces_than_there_was_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "Batch", lambda chains, _: Batch(chains, 3))
    async with card() as (harness, _, peer):
        guest = NetGuest(harness, sizes=lambda: [10] * 100)
        guest.fill(2)
        send(peer, SMALL)
        assert (await guest.rx.used())[0].data[12:] == SMALL
        await guest.send(SMALL, cuts=list(range(1, 60)))
        assert peer.recv(100)[12:] == SMALL


async def test_a_chain_in_more_pieces_than_there_can_be_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "Batch", lambda chains, _: Batch(chains, 3, limit=50))
    async with card() as (harness, _, peer):
        guest = NetGuest(harness, sizes=lambda: [10] * 100)
        guest.fill(2)
        send(peer, SMALL)
        assert "pieces" in str(await harness.broken())


@pytest.mark.parametrize("good", range(9))
async def test_a_malformed_chain_behind_good_ones_is_met_when_it_is_their_turn(good: int) -> None:
    async with card() as (harness, port, peer):
        guest = NetGuest(harness)
        guest.fill(good)
        head = guest.rx.add([], [1526])
        guest.rx.put(head, Descriptor(1 << 50, 1526, WRITE))
        guest.fill(20)
        for i in range(12):
            send(peer, bytes([i]) * 60)
        assert isinstance(await harness.broken(), GuestFault)
        used = guest.rx.poll()
        assert [u.data[12] for u in used[:good]] == list(range(good))
        assert [(u.head, u.length) for u in used[good:]] == [(head, 0)]
        assert port.rx.packets == good


@pytest.mark.parametrize("good", range(9))
async def test_a_head_outside_the_table_behind_good_ones_is_met_when_it_is_its_turn(good: int) -> None:
    """It is not taken, so there is nothing to put back, and no good one may be put back in its stead."""
    async with card() as (harness, port, peer):
        guest = NetGuest(harness, sizes=lambda: [100])
        guest.fill(good)
        guest.rx.offer(0x8000)
        guest.rx.kick()
        for i in range(12):
            send(peer, bytes([i]) * 180)  # of two buffers each; lost where there is one
        send(peer, SMALL)
        assert isinstance(await harness.broken(), ChainError)
        assert len(guest.rx.poll()) == good
        assert port.rx.packets == good // 2 + good % 2


@pytest.mark.parametrize("offered", [0, 0x8000], ids=["a loop", "outside the table"])
async def test_a_packet_for_which_a_malformed_chain_leaves_no_room_is_lost(offered: int) -> None:
    """It is not looked at again and again, as if the driver had posted some more meanwhile."""
    async with card() as (harness, port, peer):
        guest = NetGuest(harness, sizes=lambda: [100])
        head = guest.rx.add([], [100])
        guest.rx.put(200, Descriptor(0, 0, NEXT, 200))
        guest.rx.offer(offered or 200)
        guest.rx.kick()
        send(peer, bytes(180))
        await until(lambda: port.rx.dropped == 1)
        assert not port.rx.pending
        send(peer, SMALL)
        assert isinstance(await harness.broken(), ChainError)
        assert next((u.head, len(u.data)) for u in guest.rx.poll()) == (head, 76)


@pytest.mark.parametrize("good", range(6))
async def test_no_receive_buffer_behind_good_ones(good: int) -> None:
    async with card() as (harness, port, peer):
        guest = NetGuest(harness)
        guest.fill(good)
        guest.rx.add([b"readable"])
        guest.fill(20)
        for _ in range(12):
            send(peer, SMALL)
        assert isinstance(await harness.broken(), ChainError)
        assert len(guest.rx.poll()) == port.rx.packets == good


async def test_a_lone_packet_is_one_interrupt_before_another_is_looked_for(calls: list[str]) -> None:
    async with card() as (harness, _, peer):
        guest = NetGuest(harness)
        guest.fill()
        send(peer, SMALL)
        await guest.receive()
        calls.clear()
        send(peer, SMALL)
        await guest.receive()
        assert calls == ["receive: 1 used, 1 interrupt", "receive: 0 used, 0 interrupt"]


async def test_packets_that_keep_coming_are_one_interrupt(calls: list[str]) -> None:
    async with card() as (harness, _, peer):
        guest = NetGuest(harness)
        for _ in range(10):
            send(peer, SMALL)
        await asyncio.sleep(0)
        calls.clear()
        guest.fill()
        await guest.rx.used(10)
        assert calls == ["receive: 1 used, 1 interrupt", "receive: 9 used, 0 interrupt"]


@pytest.mark.parametrize(
    ("count", "size", "after", "turns"),
    [
        (10, 64, 2, ["10 used, 0", "0 used, 1"]),  # once the ring is empty
        (10, 64, 10, ["10 used, 0", "0 used, 0"]),  # the driver wants none
        (100, 64, 2, ["64 used, 1", "36 used, 0", "0 used, 0"]),  # once so many have gone, however few bytes
        (5, 30000, 1, ["2 used, 1", "3 used, 0", "0 used, 0"]),  # once so many bytes have gone
        (5, 30000, 2, ["4 used, 1", "1 used, 0", "0 used, 0"]),
    ],
)
async def test_an_interrupt_for_what_was_sent_waits_for_more(
    count: int, size: int, after: int, turns: list[str], calls: list[str]
) -> None:
    async with card() as (harness, port, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        guest = NetGuest(harness)
        await until(lambda: calls)
        calls.clear()
        assert guest.tx.enable_interrupts(after)
        for _ in range(count):
            guest.offer(LARGE[:size])
        guest.tx.kick()
        await until(lambda: len(calls) >= len(turns))
        assert [call for call in calls if call.startswith("send")] == [f"send: {turn} interrupt" for turn in turns]
        assert port.tx.packets == count
        assert guest.tx.irq.pulses == sum(turn.endswith("1") for turn in turns)
        assert len(guest.tx.poll()) == count  # whether there was an interrupt or not


async def test_a_transmitter_that_is_stopped_owes_no_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the driver uses fewer pairs, in the moment between the last frame and the turn that would have asked."""
    async with card() as (harness, _, _peer):
        guest = NetGuest(harness)
        send_turn = pump.Transmitter._send

        def last(self: pump.Transmitter) -> Next:
            following = send_turn(self)
            if self._turn.n:
                tasks.pop().cancel()
            return following

        monkeypatch.setattr(pump.Transmitter, "_send", last)
        assert isinstance(harness.device, NetDevice)
        pairs = harness.device._pairs
        assert pairs is not None
        tasks = [pairs._tasks[0][1]]
        assert guest.tx.enable_interrupts()
        guest.offer(SMALL)
        guest.tx.kick()
        await asyncio.wait_for(guest.tx.irq.wait(), HANGS)
        assert guest.tx.irq.pulses == 1


@pytest.mark.parametrize("features", [RING_FEATURES, RING_FEATURES & ~EVENT_IDX], ids=["event index", "flags"])
async def test_no_interrupt_that_the_driver_does_not_want(features: int) -> None:
    async with card(f.MAC | f.MRG_RXBUF | features) as (harness, port, peer):
        guest = NetGuest(harness)
        guest.fill()
        send(peer, SMALL)
        await guest.receive()
        await guest.send(SMALL)
        guest.rx.disable_interrupts()  # with an event index it is left behind
        guest.tx.disable_interrupts()
        before = guest.rx.irq.pulses, guest.tx.irq.pulses
        for _ in range(5):
            send(peer, SMALL)
            guest.offer(SMALL)
            guest.tx.kick()
            await asyncio.sleep(0.002)
        assert (port.rx.packets, port.tx.packets) == (6, 6)
        assert (guest.rx.irq.pulses, guest.tx.irq.pulses) == before
        guest.rx.poll()
        assert guest.rx.enable_interrupts()
        send(peer, SMALL)
        await asyncio.wait_for(guest.rx.irq.wait(), HANGS)


@pytest.mark.parametrize("good", range(4))
async def test_a_malformed_frame_behind_good_ones_is_met_when_it_is_its_turn(good: int) -> None:
    async with card() as (harness, port, peer):
        guest = NetGuest(harness)
        for _ in range(good):
            guest.offer(SMALL)
        head = guest.tx.add([bytes(100)])
        guest.tx.put(head, Descriptor(1 << 50, 100))
        guest.offer(SMALL)
        guest.tx.kick()
        assert isinstance(await harness.broken(), GuestFault)
        assert len(guest.tx.poll()) == good + 1
        assert port.tx.packets == good
        for _ in range(good):
            assert peer.recv(100)[12:] == SMALL


@pytest.mark.parametrize("good", [1, 15, 16, 17, 33])
async def test_a_head_outside_the_table_behind_frames_is_met_when_it_is_its_turn(good: int) -> None:
    async with card() as (harness, port, peer):
        guest = NetGuest(harness)
        for _ in range(good):
            guest.offer(SMALL)
        guest.tx.offer(0x8000)
        guest.tx.kick()
        assert isinstance(await harness.broken(), ChainError)
        assert len(guest.tx.poll()) == port.tx.packets == good
        for _ in range(good):
            assert peer.recv(100)[12:] == SMALL
        with pytest.raises(BlockingIOError):
            peer.recv(100)


async def test_more_frames_than_a_turn_takes() -> None:
    async with card() as (harness, port, peer):
        guest = NetGuest(harness)
        for _ in range(200):
            guest.tx.add([bytes(12) + SMALL])
        guest.tx.kick()
        got = 0

        def all_arrived() -> bool:
            nonlocal got
            try:
                while peer.recv(100):
                    got += 1
            except BlockingIOError:
                return got == 200
            return False

        await until(all_arrived)
        await guest.tx.used(200)
        assert port.tx.packets == 200


async def test_queues_that_the_driver_has_not_enabled_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    class Counting:
        def __getattr__(self, name: str) -> object:
            nonlocal calls
            calls += name.endswith("_turn")
            return getattr(lib, name)

    monkeypatch.setattr(pump, "lib", Counting())
    monkeypatch.setattr(DriverQueue, "config", lambda self, size=None: QueueConfig(max_size=size or 256))
    async with card() as (harness, port, peer):
        assert not any(queue.enabled for queue in harness.runner.queues)
        send(peer, SMALL)
        await asyncio.sleep(0.02)
        assert calls < 5
        assert port.rx.packets == port.rx.dropped == 0


async def test_another_frame_is_looked_for_before_a_kick_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    end_turn, send_turn = Queue.end_turn, pump.Transmitter._send

    def ended(self: Queue) -> bool:
        steps.extend(["asked"] * (self.index == 1))
        return end_turn(self)

    def sent(self: pump.Transmitter) -> Next:
        following = send_turn(self)
        steps.append(f"{self._turn.n} sent")
        return following

    monkeypatch.setattr(Queue, "end_turn", ended)
    monkeypatch.setattr(pump.Transmitter, "_send", sent)
    async with card() as (harness, _, peer):
        guest = NetGuest(harness)
        assert steps == ["0 sent", "asked"]
        guest.offer(SMALL)
        guest.tx.kick()
        await until(lambda: steps.count("asked") == 2)
        assert steps[2:] == ["1 sent", "0 sent", "asked"]
        assert peer.recv(100)
