"""What a peer makes a card read is charged against its turn, whether the guest gets it or not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from typing import Any

import pytest

from aiovmm.devices.virtio.net import NetDevice, SocketBackend, TapBackend, pump
from aiovmm.devices.virtio.net import features as f
from aiovmm.native import ffi, lib
from aiovmm.virtqueue.features import RING_FEATURES
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.net_guest import NetGuest, ready, until

FRAMES = 20_000
MOST = 1024
"""Packets in one call: far fewer than wait, and more than a ring holds."""
_SO_SNDBUFFORCE = 32


def fill(sock: socket.socket, data: bytes) -> int:
    """Send it FRAMES times, or as often as the socket takes it."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < FRAMES:
            sock.send(data)
            sent += 1
    return sent


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM], ids=["seqpacket", "stream"])
@pytest.mark.parametrize(("size", "room"), [(1, 1526), (13, 1526), (60, 40)], ids=["empty", "short", "no room"])
@pytest.mark.parametrize("down", [False, True], ids=["link up", "link down"])
async def test_packets_that_come_to_nothing_end_a_turn(
    kind: socket.SocketKind, size: int, room: int, down: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither frames that are too short, nor those that have no room in any buffer of the guest, nor a link that is down let a
    peer that sends without end hold the loop."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    device = NetDevice(SocketBackend(ours))
    port = device.backend.ports[0]
    lost: list[int] = []
    move = pump._Pump._move

    def counted(self: pump._Pump, call: Any, state: Any) -> int:
        before = port.rx.dropped
        status = move(self, call, state)
        lost.append(port.rx.dropped - before)
        return status

    monkeypatch.setattr(pump._Pump, "_move", counted)
    theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 64 << 20)
    with theirs:
        async with Harness(device, features=(device.features | RING_FEATURES) & ~f.MRG_RXBUF) as harness:
            await ready(device)
            device.link = not down
            guest = NetGuest(harness, mergeable=False, sizes=lambda: [room])
            guest.fill()
            sent = fill(theirs, (struct.pack(">I", size) if kind is socket.SOCK_STREAM else b"") + bytes(size))
            assert sent > 4 * MOST
            await until(lambda: port.rx.dropped == sent)
    assert max(lost) <= MOST


def test_frames_that_came_with_one_read_are_charged_one_by_one() -> None:
    ours, theirs = socket.socketpair()
    port = SocketBackend(ours).ports[0]
    turn = ffi.new("struct avmm_net_turn *", {"budget": 64 << 10})
    port.set_link(False)  # no chains are needed
    theirs.send(bytes(4 * 5000))
    assert lib.avmm_net_receive_turn(port.rx, turn) == lib.AVMM_NET_MORE
    assert 0 < port.rx.dropped <= 32
    ours.close()
    theirs.close()


async def test_a_tap_that_was_passed_in_is_not_waited_for_when_its_giver_makes_it_block() -> None:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"avmmbl%d", 0x5002))  # TAP, no PI, headers
        device = NetDevice(TapBackend(fds=[fd]))
        async with Harness(device) as harness:
            await ready(device)
            os.set_blocking(fd, True)
            guest = NetGuest(harness)
            guest.fill()  # a read, with nothing there or little
            for _ in range(4):
                os.set_blocking(fd, True)  # uvloop sets the flag whenever it begins to watch
                await guest.send(bytes(64))
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_a_socket_that_was_passed_in_is_not_waited_for_either(kind: socket.SocketKind) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    device = NetDevice(SocketBackend(ours))
    with theirs, socket.socket(fileno=os.dup(ours.fileno())) as givers:
        async with Harness(device) as harness:
            await ready(device)
            givers.setblocking(True)
            guest = NetGuest(harness)
            guest.fill()
            for _ in range(300):  # more than the other end takes: it reads nothing
                guest.offer(bytes(1500))
                guest.tx.kick()
                if not guest.tx.free:
                    break
            theirs.send((struct.pack(">I", 64) if kind is socket.SOCK_STREAM else b"") + bytes(64))
            assert len((await guest.receive()).frame) == 64
