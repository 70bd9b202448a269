"""A connection with a protocol of the program's own in the place of streams."""

from __future__ import annotations

import asyncio

import pytest

from aiovmm.devices.virtio.vsock.packet import Op
from aiovmm.errors import StateError, UsageError
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.vsock.guest import Guest, make_device
from tests.limits import HANGS


class Notes(asyncio.Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.transport: asyncio.Transport | None = None
        self.changed = asyncio.Event()
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.changed.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost = True
        self.changed.set()

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(HANGS):
            while text not in self.data:
                self.changed.clear()
                await self.changed.wait()


async def test_bytes_both_ways_and_the_end() -> None:
    device = make_device()
    async with Harness(device) as harness, Guest(harness) as guest:
        guest.listen(7)
        notes = await device.streams.attach(7, Notes)
        sock = await guest.accept(7)
        await sock.send(b"from the guest")
        await notes.until(b"from the guest")
        assert notes.transport is not None
        notes.transport.write(b"from the host")
        assert await sock.recv_exactly(13) == b"from the host"
        await sock.close()
        async with asyncio.timeout(HANGS):
            while not notes.lost:
                notes.changed.clear()
                await notes.changed.wait()
        notes.transport.close()


async def test_a_guest_that_is_reset_is_the_end() -> None:
    device = make_device()
    async with Harness(device) as harness, Guest(harness) as guest:
        guest.listen(7)
        notes = await device.streams.attach(7, Notes)
        await guest.accept(7)
        device.transport_reset()
        async with asyncio.timeout(HANGS):
            while not notes.lost:
                notes.changed.clear()
                await notes.changed.wait()
        assert device.connections == 0


async def test_nobody_there() -> None:
    device = make_device()
    async with Harness(device) as harness, Guest(harness) as guest:
        for _ in range(50):  # no descriptor of the guest's share stays taken
            with pytest.raises(ConnectionRefusedError):
                await device.streams.attach(9, Notes)
        assert device.streams.live
        assert [header.op for header in guest.log].count(Op.REQUEST) == 50
        with pytest.raises(UsageError):
            await device.streams.attach(-1, Notes)
    with pytest.raises(StateError):
        await device.streams.attach(9, Notes)


async def test_a_guest_whose_driver_is_not_there_is_waited_for() -> None:
    device = make_device()
    assert not device.streams.live
    async with Harness(device) as harness, Guest(harness) as guest:
        guest.listen(7)
        notes = await device.streams.attach(7, Notes)
        assert notes.transport is not None
        notes.transport.abort()
