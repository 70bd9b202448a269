"""How often a host's socket is read, and that nothing stays in it unread."""

from __future__ import annotations

import array
import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest

from aiovmm import native
from aiovmm.devices.virtio.vsock import VsockDevice, link, to_guest
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.vsock.guest import Guest, Sock, make_device
from tests.limits import HANGS


class CountingLib:
    """The native library, with a count of what is received."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def avmm_frames_recv(self, *arguments: Any) -> int:
        self.reads += 1
        got: int = self._lib.avmm_frames_recv(*arguments)
        return got

    def avmm_frames_give(self, *arguments: Any) -> int:
        self.reads += 1
        got: int = self._lib.avmm_frames_give(*arguments)
        return got


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[Sock, socket.socket]]:
    """A connection of the guest's, and the host's end of it."""
    ours, theirs = socket.socketpair()
    device = make_device()
    with closing(theirs):
        async with Harness(device) as harness, Guest(harness) as guest:
            device._switch.listeners[9] = lambda port, accepted: accepted(ours)
            yield await guest.connect(9), theirs


async def test_a_message_is_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lib = CountingLib(native.lib)
    monkeypatch.setattr(link, "lib", lib)
    monkeypatch.setattr(to_guest, "lib", lib)
    async with joined() as (sock, host):
        for number in range(10):
            host.send(b"message %d" % number)
            assert await sock.recv() == b"message %d" % number
        assert lib.reads == 10


async def test_the_end_behind_a_message_is_seen() -> None:
    async with joined() as (sock, host):
        host.send(b"last words")
        host.shutdown(socket.SHUT_WR)
        assert await sock.recv_all() == b"last words"


async def test_what_follows_descriptors_that_were_sent_along_arrives() -> None:
    """A read of a unix socket ends behind them, though there is more."""
    async with joined() as (sock, host):
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [host.fileno()]).tobytes())]
        for number in range(5):
            host.sendmsg([b"%d" % number], passed)
        data = b""
        while len(data) < 5:
            data += await sock.recv()
        assert data == b"01234"


async def test_what_follows_out_of_band_data_arrives() -> None:
    """A read ends before it, though there is more."""
    async with joined() as (sock, host):
        host.send(b"before")
        try:
            host.send(b"!", socket.MSG_OOB)
        except OSError:
            pytest.skip("the kernel knows none on unix sockets")
        host.send(b"after")
        data = b""
        while b"after" not in data:
            data += await sock.recv()
        assert data in (b"beforeafter", b"before!after")


async def test_a_host_that_takes_what_it_got_wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[int] = []
    on_event = link.Link.on_event

    def counting(self: link.Link, what: int) -> None:
        events.append(what)
        on_event(self, what)

    monkeypatch.setattr(link.Link, "on_event", counting)
    async with joined() as (sock, host):
        for _ in range(10):
            await sock.send(b"message")
            assert await asyncio.to_thread(host.recv, 100) == b"message"
        assert events == []


async def test_only_who_has_something_left_hears_of_room() -> None:
    """A host that reads late gets all of it, and its socket is watched for room only meanwhile."""
    async with joined() as (sock, host):
        wanted: list[bool] = []
        device = sock.guest.harness.device
        assert isinstance(device, VsockDevice)
        (end,) = device._switch.links.values()
        want_room = end.want_room

        def noted(wants: bool) -> None:
            wanted.append(wants)
            want_room(wants)

        end.want_room = noted
        end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        data = bytes(range(256)) * 200
        for at in range(0, len(data), 4096):
            await sock.send(data[at : at + 4096])
        await sock.guest.until(lambda: end.connection.rx_cnt == len(data))
        assert wanted == [True]
        got = bytearray()
        async with asyncio.timeout(HANGS):
            while len(got) < len(data):
                got += await asyncio.to_thread(host.recv, 1 << 16)
        assert got == data
        assert not wanted[-1]
