"""Devices under load that are stopped at any moment, and go on here or as another object: nothing is lost, nothing done twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, Status
from aiovmm.devices.virtio.blk.engine import IoKind
from aiovmm.devices.virtio.blk.protocol import SECTOR, Request
from aiovmm.devices.virtio.console import ConsoleDevice
from aiovmm.devices.virtio.net import NetDevice, SocketBackend
from aiovmm.devices.virtio.net import features as f
from aiovmm.devices.virtio.net.config_space import ANNOUNCE, LINK_UP
from aiovmm.devices.virtio.net.tap import TapBackend
from aiovmm.devices.virtio.rng import RngDevice
from aiovmm.devices.virtio.rng.source import open_source
from aiovmm.devices.virtio.vsock import rings
from aiovmm.devices.virtio.vsock.device import VsockDevice
from aiovmm.devices.virtio.vsock.packet import TRANSPORT_RESET
from aiovmm.errors import SnapshotError
from aiovmm.virtqueue.features import EVENT_IDX, RING_FEATURES
from aiovmm.virtqueue.harness import Harness
from aiovmm.virtqueue.status import Status as DeviceStatus
from tests.devices.virtio.blk_driver import contents, get_id, header, read, write
from tests.devices.virtio.net_guest import NetGuest, ready
from tests.devices.virtio.test_blk_properties import SECTORS, Model, image_file
from tests.devices.virtio.vsock.guest import CID, Guest
from tests.limits import HANGS
from tests.saving.stopped import move, pause
from tests.saving.text import through_text

# -- disks ---------------------------------------------------------------------------------------------------------------


def disk(path: Path, io: IoKind) -> BlkDevice:
    return BlkDevice(DiskImage.open(path), queue_size=32, io=io)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    io=st.sampled_from([IoKind.URING, IoKind.THREADS]),
    without=st.sampled_from([0, EVENT_IDX]),
    elsewhere=st.booleans(),
)
async def test_a_disk_under_load(seed: int, io: IoKind, without: int, elsewhere: bool) -> None:
    """Flights of requests that do not overlap, stopped in the middle: all are answered once, without an error, and the file holds
    what was answered."""
    rand = random.Random(seed)
    with image_file() as path:
        model = Model(rand)
        device = disk(path, io)
        features = (device.features | RING_FEATURES) & ~without
        async with Harness(device, features=features, queue_sizes=[32]) as h:
            for _ in range(rand.randint(1, 6)):
                await _flight(h, model, rand)
                for _ in range(rand.randint(0, 3)):
                    await asyncio.sleep(0)
                if elsewhere and rand.random() < 0.5:
                    await _land_elsewhere(h, path, io)
                else:
                    await pause(h)
                await _landed(h, model)
            assert h.errors == []
            assert await read(h, 0, SECTORS * SECTOR) == bytes(model.content)
        assert contents(path) == bytes(model.content)


async def _flight(h: Harness, model: Model, rand: random.Random) -> None:
    """Ask for things in different parts of the disk."""
    h.expected = {}  # type: ignore[attr-defined]
    parts = rand.randint(1, 6)
    for part in range(parts):
        first, last = SECTORS * part // parts, SECTORS * (part + 1) // parts
        text, room, answer = model.request(first, last)
        head = h.queues[0].add([text], [*([room] if room else []), 1], indirect=rand.random() < 0.3)
        h.expected[head] = answer  # type: ignore[attr-defined]
        if rand.random() < 0.7:
            h.queues[0].kick()
            await asyncio.sleep(0)
    h.queues[0].kick()


async def _landed(h: Harness, model: Model) -> None:
    expected = h.expected  # type: ignore[attr-defined]
    for used in await h.queues[0].used(len(expected)):
        answer = expected.pop(used.head)
        assert used.buffers[-1] == bytes([Status.OK])
        assert b"".join(used.buffers[:-1]) == answer


async def _land_elsewhere(h: Harness, path: Path, io: IoKind) -> None:
    await h.runner.suspend()  # or the lock of the image would still be held
    image: list[DiskImage] = []

    def opened() -> DiskImage:
        image.append(DiskImage.open(path))
        return image[0]

    await move(h, BlkDevice(opened, queue_size=32, io=io))


async def test_a_disk_keeps_its_cache_mode_and_tells_of_a_new_size(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SECTOR * 8))
    async with Harness(disk(path, IoKind.AUTO)) as h:
        await write(h, 1, b"x" * SECTOR)
        h.device.write_config(32, b"\0")
        assert h.device.read_config(32, 1) == b"\0"
        before = h.config_irq.pulses
        os.truncate(path, SECTOR * 16)
        await _land_elsewhere(h, path, IoKind.AUTO)
        assert h.device.read_config(32, 1) == b"\0"
        assert isinstance(h.device, BlkDevice)
        assert h.device.capacity == SECTOR * 16
        while h.config_irq.pulses == before:  # noqa: ASYNC110 - told when it goes on
            await asyncio.sleep(0)
        assert await read(h, 1, SECTOR) == b"x" * SECTOR
        h.device.write_config(32, b"\1")


async def test_a_disk_keeps_the_serial_number_that_was_made_of_its_file(tmp_path: Path) -> None:
    """Its guest may have found its disks by it. One that is chosen is the disk's."""
    first, copy, other = (tmp_path / name for name in ("disk", "copy", "other"))
    for path in (first, copy, other):
        path.write_bytes(bytes(SECTOR * 8))
    async with Harness(disk(first, IoKind.AUTO)) as h:
        seen = await get_id(h)
        assert seen.rstrip(b"\0").endswith(str(first.stat().st_ino).encode()[-4:])
        for path in (copy, first):  # what goes on is saved again
            await _land_elsewhere(h, path, IoKind.AUTO)
            assert await get_id(h) == seen
        await move(h, BlkDevice(DiskImage.open(other), queue_size=32, serial="chosen"))
        assert await get_id(h) == b"chosen".ljust(20, b"\0")


async def test_a_disk_of_an_earlier_version_says_nothing_of_its_serial_number(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(SECTOR * 8))
    async with Harness(disk(tmp_path / "disk", IoKind.AUTO)) as h:
        assert isinstance(h.device, BlkDevice)
        h.device.load({"write_back": True, "sectors": 8})
        assert await get_id(h) == h.device.save()["serial"]


async def test_an_image_that_has_shrunk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SECTOR * 8))
    device = disk(path, IoKind.AUTO)
    state = device.save()
    await device.close()
    os.truncate(path, SECTOR * 4)
    smaller = disk(path, IoKind.AUTO)
    with pytest.raises(
        SnapshotError, match="disk had 4096 bytes and its image has 2048: give it the image that it had"
    ):
        smaller.load(state)
    await smaller.close()


async def test_a_request_that_the_host_holds_up_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never answered by an error, as it is when the driver resets the device."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(SECTOR * 8))
    device = disk(path, IoKind.THREADS)
    may_go = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with Harness(device) as h:
        discard = DiskImage.discard

        def slow(image: DiskImage, extent: object, stop: object) -> int:
            asyncio.run_coroutine_threadsafe(may_go.wait(), loop).result(HANGS)
            assert callable(stop)
            assert not stop()
            return discard(image, extent, stop)  # type: ignore[arg-type]

        monkeypatch.setattr(DiskImage, "discard", slow)
        h.queues[0].add([header(Request.DISCARD), (0).to_bytes(8, "little") + b"\1\0\0\0\0\0\0\0"], [1])
        h.queues[0].kick()
        while not h.runner.queues[0].in_flight:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)
        suspended = asyncio.create_task(pause(h))
        await asyncio.sleep(0.01)
        assert not suspended.done()
        may_go.set()
        await suspended
        (used,) = await h.queues[0].used()
        assert used.buffers == [bytes([Status.OK])]


MAC = b"\x2e\0\0\0\0\7"


# -- networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
async def test_no_frame_is_lost_while_a_card_is_stopped_for_a_moment(kind: socket.SocketKind) -> None:
    rand = random.Random(7)
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    theirs.setblocking(False)
    with theirs:
        async with Harness(NetDevice(SocketBackend(ours))) as h:
            assert isinstance(h.device, NetDevice)
            await ready(h.device)
            guest = NetGuest(h)
            guest.fill(2)  # few buffers: packets wait for them
            wire = _Wire(theirs, stream=kind is socket.SOCK_STREAM)
            for number in range(60):
                frame = bytes([number]) * rand.randint(60, 1500)
                if rand.random() < 0.5:
                    await wire.send(frame)
                    if rand.random() < 0.6:
                        await pause(h)
                    assert (await guest.receive()).frame == frame
                else:
                    guest.offer(frame)
                    guest.tx.kick()
                    for _ in range(rand.randint(0, 2)):
                        await asyncio.sleep(0)
                    if rand.random() < 0.6:
                        await pause(h)
                    await guest.tx.used()
                    assert await wire.receive() == frame
            assert h.errors == []


class _Wire:
    """The other end of a card's socket: frames, with their length before them on a stream."""

    def __init__(self, sock: socket.socket, *, stream: bool) -> None:
        self._sock = sock
        self._stream = stream
        self._got = b""

    async def send(self, frame: bytes) -> None:
        data = len(frame).to_bytes(4, "big") + frame if self._stream else frame
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(HANGS):
            if not self._stream:
                return await loop.sock_recv(self._sock, 70000)
            while len(self._got) < 4 or len(self._got) < 4 + int.from_bytes(self._got[:4], "big"):
                self._got += await loop.sock_recv(self._sock, 70000)
        size = int.from_bytes(self._got[:4], "big")
        frame, self._got = self._got[4 : 4 + size], self._got[4 + size :]
        return frame


async def test_a_card_keeps_what_its_driver_has_chosen() -> None:
    first, second = (
        socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
        socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
    )
    with first[1], second[1]:
        async with Harness(NetDevice(SocketBackend(first[0], vnet_hdr=True))) as h:
            control = h.queues[-1]
            offloads = f.GUEST_CSUM
            control.add([b"\5\0", offloads.to_bytes(8, "little")], [1])  # CTRL_GUEST_OFFLOADS_SET
            control.kick()
            assert (await control.used())[0].data == b"\0"
            assert isinstance(h.device, NetDevice)
            h.device.announce()
            assert h.device.read_config(6, 2) == bytes([LINK_UP | ANNOUNCE, 0])
            other = NetDevice(SocketBackend(second[0], vnet_hdr=True))
            await move(h, other)
            await ready(other)
            assert other.save()["offloads"] == offloads
            control.add([b"\3\0"], [1])  # CTRL_ANNOUNCE_ACK
            control.kick()
            assert (await control.used())[0].data == b"\0"
            assert other.read_config(6, 2) == bytes([LINK_UP, 0])
            await pause(h)
            await ready(other)
            assert other.read_config(6, 2) == bytes([LINK_UP, 0]), "it is announced where it came to be, once"
            third = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            await move(h, NetDevice(SocketBackend(third[0], vnet_hdr=True), mac=MAC))
            other, second = h.device, third
            assert isinstance(other, NetDevice)
            await ready(other)
            assert other.read_config(6, 2) == bytes([LINK_UP | ANNOUNCE, 0])
            assert other.read_config(0, 6) == MAC, "the address is the configuration's"
            guest = NetGuest(h)
            await guest.send(b"x" * 60)
            assert second[1].recv(2000)[12:] == b"x" * 60


async def test_a_card_whose_driver_has_gone_goes_on_elsewhere() -> None:
    ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    with ends[0][1], ends[1][1]:
        first, second = (NetDevice(SocketBackend(ours, vnet_hdr=True)) for ours, _ in ends)
        async with Harness(first) as h:
            await ready(first)
            assert first.save()["offloads"]
            await h.reset()
            second.load(through_text(first.save()))
        await second.close()


async def test_two_pairs_without_multiqueue_are_no_drivers() -> None:
    """Two coroutines would wait on the control queue."""
    card = NetDevice(TapBackend(pairs=2))
    state = {"features": f.CTRL_VQ, "pairs": 2, "offloads": 0, "status": LINK_UP}
    with pytest.raises(SnapshotError, match="net: no driver uses 2 queue pairs with the features 0x20000"):
        card.load(state)
    assert card.save()["pairs"] == 1
    card.load({**state, "features": f.CTRL_VQ | f.MQ})
    assert card.save()["pairs"] == 2


async def test_a_card_that_comes_with_what_its_driver_has_not_negotiated_needs_a_reset() -> None:
    """Its own state has the features a second time."""

    class Altered(NetDevice):
        def save(self) -> dict[str, Any]:
            return {**super().save(), "features": f.CTRL_VQ | f.MQ | f.GUEST_CSUM, "offloads": f.GUEST_CSUM}

    ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    with ends[0][1], ends[1][1]:
        cards = [
            kind(SocketBackend(ours, vnet_hdr=True)) for kind, (ours, _) in zip((Altered, NetDevice), ends, strict=True)
        ]
        async with Harness(cards[0], features=RING_FEATURES | f.CTRL_VQ) as h:
            await ready(cards[0])
            await move(h, cards[1])
            while not h.errors:  # noqa: ASYNC110 - told when it runs
                await asyncio.sleep(0)
            assert [str(error) for error in h.errors] == ["net: no driver takes the offloads 0x2 of 0x130020000"]
            assert h.negotiation.status & DeviceStatus.NEEDS_RESET
            h.errors.clear()


# -- sockets -------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def sockets() -> AsyncIterator[tuple[Harness, Guest, VsockDevice]]:
    device = VsockDevice(CID)
    async with Harness(device) as h, Guest(h) as guest:
        yield h, guest, device


async def test_streams_go_on_after_a_moment() -> None:
    """Both directions, stopped all the time, while more waits than either side takes at once."""
    data = random.Random(1).randbytes(400_000)
    async with sockets() as (h, guest, device):
        guest.listen(7)
        connecting = asyncio.create_task(device.streams.connect(7))
        sock = await guest.accept(7)
        reader, writer = await connecting

        async def host() -> bytes:
            writer.write(data)
            await writer.drain()
            got = await reader.readexactly(len(data))
            writer.close()
            return got

        async def other() -> bytes:
            half = asyncio.create_task(sock.send(data))
            got = await sock.recv_exactly(len(data))
            await half
            return got

        ends = asyncio.gather(host(), other())
        pauses = 0
        while not ends.done():
            await pause(h)
            pauses += 1
            await asyncio.sleep(0.001)
        assert [*await ends] == [data, data]
        assert pauses > 3
        assert h.errors == []


async def test_a_guest_that_goes_on_elsewhere_is_told_that_its_connections_are_gone() -> None:
    async with sockets() as (h, guest, device):
        guest.listen(7)
        connecting = asyncio.create_task(device.streams.connect(7))
        await guest.accept(7)
        await connecting
        other = VsockDevice(CID)  # the simulator knows one context id
        await move(h, other)
        assert h.device is other
        await pause(h)
        third = VsockDevice(CID)
        await move(h, third)  # before it had a buffer for the event
        h.queues[2].add([], [4])
        h.queues[2].kick()
        assert (await h.queues[2].used())[0].data == TRANSPORT_RESET
        await pause(h)
        h.queues[2].add([], [4])
        h.queues[2].kick()
        connecting = asyncio.create_task(third.streams.connect(7))
        await guest.accept(7)
        await connecting
        assert h.queues[2].poll() == [], "it is told once"


@contextlib.asynccontextmanager
async def told(runs: Callable[[], bool]) -> AsyncIterator[tuple[Harness, Guest, VsockDevice]]:
    """A guest that goes on elsewhere, has been told so, and has not heeded it; it has one more buffer for events."""
    async with sockets() as (h, guest, device):
        await guest.until(lambda: device.streams.live)
        guest.listen(7)
        await give_back(h, 2)
        other = VsockDevice(CID, runs=runs)
        await move(h, other)
        assert (await h.queues[2].used())[0].data == TRANSPORT_RESET
        yield h, guest, other


async def give_back(h: Harness, buffers: int = 1) -> None:
    for _ in range(buffers):
        h.queues[2].add([], [4])
    h.queues[2].kick()
    await asyncio.sleep(0.01)


async def test_a_pause_does_not_end_the_wait_for_a_guest_that_has_not_heeded_a_reset() -> None:
    async with told(lambda: True) as (h, guest, device):
        await pause(h)
        connecting = asyncio.create_task(device.streams.connect(7))
        await asyncio.sleep(0.01)
        assert guest.log == [], "it would forget a connection that it accepted now"
        await give_back(h)
        await guest.accept(7)
        await connecting
        assert h.queues[2].poll() == [], "it is told once"


async def test_a_guest_that_moves_on_before_it_has_heeded_a_reset_is_waited_for_until_it_has_heeded_both() -> None:
    async with told(lambda: True) as (h, guest, _):
        device = VsockDevice(CID)
        await move(h, device)
        assert (await h.queues[2].used())[0].data == TRANSPORT_RESET
        connecting = asyncio.create_task(device.streams.connect(7))
        await give_back(h)
        assert guest.log == [], "that was the buffer of the first"
        await give_back(h)
        await guest.accept(7)
        await connecting


async def test_a_guest_that_stands_still_has_its_time_to_heed_a_reset_once_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rings, "PATIENCE", 0.02)
    goes_on: list[bool] = []
    async with told(lambda: bool(goes_on)) as (_, guest, device):
        connecting = asyncio.create_task(device.streams.connect(7))
        await asyncio.sleep(0.2)
        assert guest.log == []
        goes_on.append(True)
        await guest.accept(7)  # though it does not heed it
        await connecting


async def test_a_guest_whose_ring_says_that_it_has_more_event_buffers_than_there_can_be_goes_on_elsewhere() -> None:
    async with sockets() as (h, guest, device):
        await guest.until(lambda: device.streams.live)
        events = h.queues[2]
        await give_back(h, 2)
        device.transport_reset()
        await events.used()
        await give_back(h)
        await guest.until(lambda: device._rings is not None and not device._rings.unheeded)
        h.memory.write(events.avail + 2, b"\xff\xef")
        device.transport_reset()
        await asyncio.sleep(0.01)
        await move(h, VsockDevice(CID))
        assert h.errors == []


# -- consoles and entropy ------------------------------------------------------------------------------------------------


async def test_a_console_goes_on_with_what_is_printed_and_typed() -> None:
    printed = bytearray()
    device = ConsoleDevice(printed.extend)
    async with Harness(device) as h:
        for number in range(20):
            h.queues[1].add([b"%02d" % number])
            h.queues[1].kick()
            await asyncio.sleep(0)
            if number % 3 == 0:
                await pause(h)
            elif number % 3 == 1:
                await move(h, ConsoleDevice(printed.extend))
            await h.queues[1].used()
            console = h.device
            assert isinstance(console, ConsoleDevice)
            h.queues[0].add([], [8])
            h.queues[0].kick()
            while not console.receive(b"typed"):  # noqa: ASYNC110 - when it has seen the buffer
                await asyncio.sleep(0)
            assert (await h.queues[0].used())[0].data == b"typed"
        await h.reset()
    assert bytes(printed) == b"".join(b"%02d" % number for number in range(20))


def nothing(_data: bytes) -> None:
    """Of what is printed."""


async def test_what_is_printed_in_long_chains_is_printed_once_however_often_a_console_stops() -> None:
    printed = bytearray()
    async with Harness(ConsoleDevice(printed.extend)) as h:
        ring = h.queues[1]
        parts = [[bytes([chain, part]) * 3000 for part in range(25)] for chain in range(5)]
        for chain in parts:
            ring.add(chain)
        ring.kick()
        stops = 0
        while ring.outstanding:
            before = len(printed)
            while len(printed) == before and ring.outstanding:
                await asyncio.sleep(0)
                ring.poll()
            await (pause(h) if stops % 2 else move(h, ConsoleDevice(printed.extend)))
            ring.poll()
            stops += 1
        assert printed == b"".join(b"".join(chain) for chain in parts)
        assert stops > 5
        assert h.errors == []


async def test_a_chain_that_was_half_printed_as_its_driver_went_is_forgotten() -> None:
    printed = bytearray()
    async with Harness(ConsoleDevice(printed.extend)) as h:
        h.queues[1].add([b"x" * 4096] * 40)
        h.queues[1].kick()
        while not printed:  # noqa: ASYNC110 - by a turn at a time
            await asyncio.sleep(0)
        await h.runner.suspend()
        assert 0 < len(printed) < 4096 * 40
        assert h.device.save()["half"] == len(printed)  # type: ignore[index]
        await h.reset()
        assert h.device.save() == {"size": [80, 24], "held": False}


async def test_a_terminal_of_another_size_is_told_where_a_console_goes_on() -> None:
    async with Harness(ConsoleDevice(nothing, size=(80, 24))) as h:
        before = h.config_irq.pulses
        await move(h, ConsoleDevice(nothing, size=(80, 24)))
        await asyncio.sleep(0)
        assert h.config_irq.pulses <= before + 1
        before = h.config_irq.pulses
        await move(h, ConsoleDevice(nothing, size=(100, 30)))
        while h.config_irq.pulses == before:  # noqa: ASYNC110 - told when it goes on
            await asyncio.sleep(0)


async def test_entropy_goes_on() -> None:
    def device() -> RngDevice:
        return RngDevice(lambda: open_source(Path("/dev/urandom")))

    async with Harness(device()) as h:
        for number in range(12):
            h.queues[0].add([], [64])
            h.queues[0].kick()
            await (pause(h) if number % 2 else move(h, device()))
            assert len((await h.queues[0].used())[0].data) == 64
