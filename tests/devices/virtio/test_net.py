"""virtio-net as a driver sees it, on a socket instead of an interface."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiovmm.devices.virtio.net import NetDevice, SocketBackend, pump
from aiovmm.devices.virtio.net import features as f
from aiovmm.devices.virtio.net.watch import FdWatch
from aiovmm.errors import ChainError, ConfigError
from aiovmm.native import lib
from aiovmm.virtqueue.driver import WRITE, Descriptor
from aiovmm.virtqueue.features import RING_FEATURES
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.net_guest import CONTROL_ERR, CONTROL_OK, Header, NetGuest, ready, until
from tests.limits import HANGS

MAC = bytes.fromhex("2e0000000001")
CONTROL = 2
FRAME = bytes(range(64))


@asynccontextmanager
async def card(
    *,
    kind: socket.SocketKind = socket.SOCK_SEQPACKET,
    vnet_hdr: bool = True,
    features: int | None = None,
    mtu: int | None = None,
    queue_size: int = 256,
) -> AsyncIterator[tuple[Harness, NetDevice, socket.socket]]:
    """A running device, and the other end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    theirs.setblocking(False)
    device = NetDevice(SocketBackend(ours, vnet_hdr=vnet_hdr, mtu=mtu), mac=MAC, queue_size=queue_size)
    with theirs:
        async with Harness(device, features=None if features is None else features | RING_FEATURES) as harness:
            await ready(device)
            yield harness, device, theirs


async def arrives(sock: socket.socket, size: int = 70000) -> bytes:
    """The next message, or whatever a stream has."""
    result = b""

    def one() -> bool:
        nonlocal result
        try:
            result = sock.recv(size)
        except BlockingIOError:
            return False
        return True

    await until(one)
    return result


async def test_configuration_space() -> None:
    async with card(mtu=9000) as (_, device, _):
        assert device.read_config(0, 12) == MAC + struct.pack("<HHH", 1, 1, 9000)
        assert device.read_config(6, 2) == b"\1\0"
        assert device.read_config(10, 8) == struct.pack("<H", 9000) + bytes(6)
        assert device.read_config(1000, 4) == bytes(4)


async def test_a_frame_each_way() -> None:
    async with card() as (harness, device, peer):
        guest = NetGuest(harness)
        guest.fill()
        peer.send(Header(flags=2).pack() + FRAME)
        packet = await guest.receive()
        assert packet.frame == FRAME
        assert packet.header == Header(flags=2, num_buffers=1)
        await guest.send(FRAME[::-1])
        assert await arrives(peer) == bytes(12) + FRAME[::-1]
        c = device.counters
        assert (c.rx_packets, c.rx_bytes, c.tx_packets, c.tx_bytes) == (1, 64, 1, 64)
        assert (c.rx_dropped, c.tx_dropped, c.tx_errors) == (0, 0, 0)


async def test_a_large_packet_is_merged_from_many_buffers() -> None:
    frame = bytes(i % 251 for i in range(60000))
    async with card() as (harness, _, peer):
        guest = NetGuest(harness)
        guest.fill()
        peer.send(Header(gso_type=1, gso_size=1448).pack() + frame)
        packet = await guest.receive()
        assert packet.frame == frame
        assert packet.header == Header(gso_type=1, gso_size=1448, num_buffers=40)


async def test_without_mergeable_buffers_a_packet_has_one_chain_and_says_so() -> None:
    async with card(features=f.MAC | f.STATUS) as (harness, device, peer):
        guest = NetGuest(harness, mergeable=False)
        guest.fill()
        peer.send(bytes(12) + bytes(1600))  # larger than any buffer
        peer.send(bytes(12) + FRAME)
        packet = await guest.receive()
        assert packet.frame == FRAME
        assert packet.header.num_buffers == 1
        assert device.counters.rx_dropped == 1


async def test_frames_wait_for_buffers() -> None:
    async with card() as (harness, device, peer):
        guest = NetGuest(harness)
        for i in range(8):
            peer.send(bytes(12) + bytes([i]) * 60)
        guest.fill(3)
        assert [u.data[12] for u in await guest.rx.used(3)] == [0, 1, 2]
        guest.fill(5)
        assert [u.data[12] for u in await guest.rx.used(5)] == [3, 4, 5, 6, 7]
        assert device.counters.rx_dropped == 0


async def test_a_packet_that_needs_more_buffers_than_there_are_waits_for_them() -> None:
    frame = bytes(i % 249 for i in range(9000))
    async with card() as (harness, device, peer):
        guest = NetGuest(harness)
        guest.fill(2)
        peer.send(bytes(12) + frame)
        guest.fill(1)
        guest.fill(1)
        peer.send(bytes(12) + FRAME)
        await until(lambda: device.backend.ports[0].rx.pending)
        assert not guest.rx.poll()
        guest.fill()
        assert (await guest.receive()).frame == frame
        assert (await guest.receive()).frame == FRAME
        assert device.counters.rx_dropped == 0


async def test_waiting_for_more_buffers_does_not_keep_the_loop_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    receive = lib.avmm_net_receive_turn

    class Counting:
        def __getattr__(self, name: str) -> object:
            nonlocal turns
            turns += name == "avmm_net_receive_turn"
            return receive if name == "avmm_net_receive_turn" else getattr(lib, name)

    monkeypatch.setattr(pump, "lib", Counting())
    monkeypatch.setattr(pump, "_PATIENCE", 60)
    async with card() as (harness, device, peer):
        guest = NetGuest(harness, sizes=lambda: [100])
        guest.fill(100)
        peer.send(bytes(12) + bytes(15000))
        await until(lambda: device.backend.ports[0].rx.pending)
        turns = 0
        await asyncio.sleep(0.05)
        assert turns < 5
        guest.fill()
        assert (await guest.receive()).frame == bytes(15000)


async def test_a_packet_gets_buffers_that_are_posted_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = bytes(i % 249 for i in range(9000))
    receive, looked = lib.avmm_net_receive_turn, 0

    class Meanwhile:
        """The driver, on its own processor, posts some after each turn has found too few."""

        def __getattr__(self, name: str) -> object:
            return self.turn if name == "avmm_net_receive_turn" else getattr(lib, name)

        def turn(self, rx: Any, turn: Any) -> int:
            nonlocal looked
            status: int = receive(rx, turn)
            if rx.pending:
                looked += 1
                guest.fill(1)
            return status

    async with card() as (harness, device, peer):
        guest = NetGuest(harness)
        guest.fill(2)
        monkeypatch.setattr(pump, "lib", Meanwhile())
        peer.send(bytes(12) + frame)
        assert (await guest.receive()).frame == frame
        assert device.counters.rx_dropped == 0
        assert looked == 4


@pytest.mark.parametrize("bad", [None, 3])
async def test_a_packet_that_needs_more_buffers_than_a_turn_takes_is_lost(bad: int | None) -> None:
    """Or such as come behind one that is none: at once, for waiting would not help."""
    async with card(queue_size=1024) as (harness, device, peer):
        guest = NetGuest(harness, sizes=lambda: [100])
        if bad is not None:
            guest.fill(bad)
            guest.rx.add([b"not for the device to write"], [])
        guest.fill()
        peer.send(bytes(12) + bytes(60000))
        await until(lambda: device.counters.rx_dropped == 1)
        peer.send(bytes(12) + FRAME)
        assert (await guest.receive()).frame == FRAME


async def test_a_packet_outlasts_a_guest_that_is_not_run_for_a_while() -> None:
    frame = bytes(9000)
    async with card() as (harness, device, peer):
        guest = NetGuest(harness)
        guest.fill(2)
        peer.send(bytes(12) + frame)
        await asyncio.sleep(0.3)
        guest.fill()
        assert (await guest.receive()).frame == frame
        assert device.counters.rx_dropped == 0


async def test_a_packet_waits_a_bounded_time_for_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "_PATIENCE", 0.05)
    async with card() as (harness, device, peer):
        guest = NetGuest(harness)
        guest.fill(2)
        peer.send(bytes(12) + bytes(9000))
        peer.send(bytes(12) + FRAME)
        assert (await guest.receive()).frame == FRAME
        assert device.counters.rx_dropped == 1


async def test_a_packet_that_no_ring_of_this_size_can_hold_is_dropped_and_counted() -> None:
    async with card(queue_size=16) as (harness, device, peer):
        guest = NetGuest(harness, sizes=lambda: [200])
        guest.fill()
        peer.send(bytes(12) + bytes(5000))
        peer.send(bytes(12) + FRAME)
        assert (await guest.receive()).frame == FRAME
        assert device.counters.rx_dropped == 1


async def test_a_guest_without_buffers_does_not_keep_the_loop_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    wakes = 0
    awake = FdWatch._on_readable

    def count(watch: FdWatch) -> None:
        nonlocal wakes
        wakes += 1
        awake(watch)

    monkeypatch.setattr(FdWatch, "_on_readable", count)
    async with card() as (harness, _, peer):
        guest = NetGuest(harness)
        guest.fill(1)
        for _ in range(4):
            peer.send(bytes(12) + FRAME)
        await guest.rx.used()
        await asyncio.sleep(0.05)
        assert wakes < 5


async def test_offloads_of_the_guest_pass_as_negotiated() -> None:
    async with card() as (harness, _, peer):
        guest = NetGuest(harness)
        header = Header(flags=1, gso_type=1, hdr_len=54, gso_size=1448, csum_start=34, csum_offset=16)
        await guest.send(bytes(8000), header)
        assert await arrives(peer) == header.pack() + bytes(8000)


@pytest.mark.parametrize(
    "header",
    [
        Header(flags=1),
        Header(gso_type=1),
        Header(gso_type=3),
        Header(gso_type=5),
        Header(gso_type=0x81),
        Header(gso_type=77),
    ],
    ids=str,
)
async def test_offloads_that_were_not_negotiated_are_errors_of_that_frame_alone(header: Header) -> None:
    async with card(features=f.MAC) as (harness, device, peer):
        guest = NetGuest(harness)
        await guest.send(FRAME, header)
        await guest.send(FRAME)
        assert await arrives(peer) == bytes(12) + FRAME
        assert (device.counters.tx_errors, device.counters.tx_packets) == (1, 1)


async def test_flags_that_no_driver_sets_are_ignored() -> None:
    async with card(features=f.MAC) as (harness, _, peer):
        await NetGuest(harness).send(FRAME, Header(flags=0xFE, num_buffers=7))
        assert await arrives(peer) == bytes(12) + FRAME


@pytest.mark.parametrize("size", [0, 13, 65569, 100000])
async def test_frames_of_impossible_sizes_are_counted_and_dropped(size: int) -> None:
    async with card() as (harness, device, peer):
        guest = NetGuest(harness)
        await guest.send(bytes(size))
        await guest.send(FRAME)
        assert (await arrives(peer))[12:] == FRAME
        assert device.counters.tx_errors == 1


async def test_a_frame_of_very_many_pieces() -> None:
    async with card(queue_size=2048) as (harness, device, peer):
        frame = bytes(i % 255 for i in range(1500))
        await NetGuest(harness).send(frame, cuts=list(range(1, 1400)))
        assert (await arrives(peer))[12:] == frame
        assert device.counters.tx_errors == 0


async def test_a_transmit_buffer_without_a_header_breaks_the_device() -> None:
    async with card() as (harness, _, _):
        harness.queues[1].add([b"short"])
        harness.queues[1].kick()
        assert isinstance(await harness.broken(), ChainError)


async def test_a_writable_transmit_buffer_breaks_the_device() -> None:
    async with card() as (harness, _, _):
        harness.queues[1].add([bytes(100)], [8])
        harness.queues[1].kick()
        assert isinstance(await harness.broken(), ChainError)


@pytest.mark.parametrize("shape", [([], [11]), ([b"x"], [1526])], ids=["too small", "readable"])
async def test_a_receive_buffer_that_is_none_breaks_the_device(shape: tuple[list[bytes], list[int]]) -> None:
    async with card() as (harness, _, peer):
        harness.queues[0].add(*shape)
        harness.queues[0].kick()
        peer.send(bytes(12) + FRAME)
        assert isinstance(await harness.broken(), ChainError)


async def test_a_malformed_ring_breaks_the_device_and_a_reset_mends_it() -> None:
    async with card() as (harness, device, peer):
        harness.queues[0].add_raw([Descriptor(1 << 50, 1526, WRITE)])
        harness.queues[0].kick()
        await harness.broken()
        await harness.reset()
        await harness.start()
        await ready(device)
        guest = NetGuest(harness)
        guest.fill()
        peer.send(bytes(12) + FRAME)
        assert (await guest.receive()).frame == FRAME


# -- control queue


@pytest.mark.parametrize("knows", [True, False])
async def test_only_a_driver_that_knows_checksum_offloads_hears_of_them(knows: bool) -> None:
    """A TAP sets DATA_VALID whatever it was told."""
    async with card(features=f.MAC | (f.GUEST_CSUM | f.CTRL_VQ | f.CTRL_GUEST_OFFLOADS if knows else 0)) as (
        h,
        _,
        peer,
    ):
        guest = NetGuest(h, mergeable=False)
        guest.fill()
        peer.send(Header(flags=2).pack() + FRAME)
        assert (await guest.receive()).header.flags == (2 if knows else 0)
        if knows:  # and not while it has them switched off
            assert await control(h, b"\5\0" + bytes(8)) == CONTROL_OK
            peer.send(Header(flags=2).pack() + FRAME)
            assert (await guest.receive()).header.flags == 0


async def control(harness: Harness, data: bytes) -> bytes:
    return await harness.request(CONTROL, [data[:2], data[2:]] if len(data) > 2 else [data], [1])


async def test_offloads_are_switched_at_run_time_within_what_was_negotiated() -> None:
    async with card() as (harness, device, _):
        seen: list[int] = []
        device.backend.set_offloads = seen.append  # type: ignore[method-assign,assignment]
        assert await control(harness, b"\5\0" + struct.pack("<Q", f.GUEST_CSUM)) == CONTROL_OK
        assert await control(harness, b"\5\0" + struct.pack("<Q", 0)) == CONTROL_OK
        assert await control(harness, b"\5\0" + struct.pack("<Q", f.GUEST_CSUM | f.GUEST_USO4)) == CONTROL_ERR
        assert await control(harness, b"\5\0" + struct.pack("<Q", f.GUEST_TSO4)) == CONTROL_ERR  # needs GUEST_CSUM
        assert seen == [f.GUEST_CSUM, 0]


async def test_a_host_that_refuses_makes_the_command_fail_and_no_more() -> None:
    async with card() as (harness, device, _):

        def refuse(_: int) -> None:
            raise OSError(errno.EINVAL, "no")

        device.backend.set_offloads = refuse  # type: ignore[method-assign,assignment]
        assert await control(harness, b"\5\0" + bytes(8)) == CONTROL_ERR
        assert await control(harness, b"\3\0") == CONTROL_OK


@pytest.mark.parametrize(
    "command",
    [b"", b"\4", b"\4\0\1\0", b"\4\0\0\0", b"\5\0\0", b"\5\1" + bytes(8), b"\1\1" + bytes(6), b"\xff\xff", bytes(300)],
)
async def test_unknown_and_malformed_commands_are_refused(command: bytes) -> None:
    async with card() as (harness, _, _):
        readable = [command] if command else []
        assert await harness.request(CONTROL, readable, [1]) == CONTROL_ERR


async def test_a_command_without_room_for_an_answer_breaks_the_device() -> None:
    async with card() as (harness, _, _):
        harness.queues[CONTROL].add([b"\3\0"])
        harness.queues[CONTROL].kick()
        assert isinstance(await harness.broken(), ChainError)


async def test_an_announcement_is_asked_for_and_acknowledged() -> None:
    async with card() as (harness, device, _):
        harness.config_irq.clear()
        device.announce()
        await asyncio.wait_for(harness.config_irq.wait(), HANGS)
        assert device.read_config(6, 2) == b"\3\0"
        assert await control(harness, b"\3\0") == CONTROL_OK
        assert device.read_config(6, 2) == b"\1\0"


# -- the link


async def test_the_link_goes_down_and_up_again() -> None:
    async with card() as (harness, device, peer):
        guest = NetGuest(harness)
        guest.fill()
        harness.config_irq.clear()
        device.link = False
        await asyncio.wait_for(harness.config_irq.wait(), HANGS)
        assert device.read_config(6, 2) == b"\0\0"
        peer.send(bytes(12) + FRAME)
        await guest.send(FRAME)
        await until(lambda: device.counters.rx_dropped == 1)
        assert device.counters.tx_dropped == 1
        harness.config_irq.clear()
        device.link = True
        await asyncio.wait_for(harness.config_irq.wait(), HANGS)
        assert device.read_config(6, 2) == b"\1\0"
        peer.send(bytes(12) + FRAME[::-1])
        assert (await guest.receive()).frame == FRAME[::-1]
        await guest.send(FRAME[::-1])
        assert (await arrives(peer))[12:] == FRAME[::-1]
        assert device.counters.rx_packets == device.counters.tx_packets == 1


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=lambda k: k.name)
async def test_a_peer_that_goes_away_takes_the_link_down(kind: socket.SocketKind) -> None:
    async with card(kind=kind, vnet_hdr=False) as (harness, device, peer):
        guest = NetGuest(harness)
        guest.fill()
        await asyncio.sleep(0)
        peer.close()
        for _ in range(3):
            await guest.send(FRAME)
        await until(lambda: not device.link)
        assert device.ended is not None
        assert device.read_config(6, 2) == b"\0\0"
        (told,) = harness.reported
        assert "the other end of" in str(told)
        await harness.reset()
        await harness.start()
        await ready(device)
        await NetGuest(harness).send(FRAME)
        assert not device.link
        assert harness.reported == [told], "once"


# -- features


async def test_features_without_what_they_need_are_refused() -> None:
    device = NetDevice(SocketBackend(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0], vnet_hdr=True))
    assert device.accepts(device.features)
    assert device.accepts(0)
    for lonely in (
        f.GUEST_TSO4,
        f.GUEST_CSUM | f.GUEST_ECN,
        f.HOST_TSO6,
        f.MQ,
        f.GUEST_ANNOUNCE,
        f.CTRL_GUEST_OFFLOADS,
    ):
        assert not device.accepts(lonely)
    await device.close()


async def test_a_bare_socket_offers_no_offloads() -> None:
    async with card(vnet_hdr=False) as (_, device, _):
        assert device.features == f.MAC | f.STATUS | f.MRG_RXBUF | f.CTRL_VQ | f.GUEST_ANNOUNCE


async def test_segments_are_not_taken_by_queues_that_could_not_hold_one() -> None:
    async with card(queue_size=64) as (_, device, _):
        assert device.features & f.HOST_TSO4
        assert not device.features & (f.GUEST_TSO4 | f.GUEST_TSO6 | f.GUEST_UFO)


def test_what_is_no_address_is_refused_and_what_no_driver_takes_is_shown_as_it_is() -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with a, b:
        with pytest.raises(ConfigError, match=r"net\.mac"):
            NetDevice(SocketBackend(a), mac=b"\2\0\0\0\0")
        assert NetDevice(SocketBackend(a), mac=b"\1\0\x5e\0\0\1").read_config(0, 6) == b"\1\0\x5e\0\0\1"


async def test_resets_under_load_leave_nothing_behind() -> None:
    async with card() as (harness, device, peer):
        for turn in range(200):
            guest = NetGuest(harness)
            guest.fill(20)
            for _ in range(3):
                guest.offer(FRAME)
            guest.tx.kick()
            peer.send(bytes(12) + FRAME)
            if turn % 3 == 0:
                await asyncio.sleep(0)
            await harness.reset()
            while True:
                try:
                    peer.recv(100)
                except BlockingIOError:
                    break
            await harness.start()
            await ready(device)
        guest = NetGuest(harness)
        guest.fill()
        peer.send(bytes(12) + FRAME)
        assert (await guest.receive()).frame == FRAME
