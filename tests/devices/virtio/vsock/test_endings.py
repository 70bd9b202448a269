"""A guest that forgets as many connections as it may have, with one write: their host ends end in turns, none is left out."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aiovmm.devices.virtio.vsock import endings
from aiovmm.devices.virtio.vsock.device import VsockDevice
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.vsock.guest import Guest, Sock, make_device
from tests.limits import HANGS

COUNT = 20
Ends = list[tuple[Sock, asyncio.StreamReader, asyncio.StreamWriter]]


@pytest.fixture(autouse=True)
def one_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "UNCONTENDED", 0.0)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[VsockDevice, Ends]]:
    device = make_device()
    async with Harness(device) as harness, Guest(harness) as guest, await device.streams.listen(9) as server:
        ends = []
        for _ in range(COUNT):
            sock = await guest.connect(9)
            ends.append((sock, *await server.accept()))
        yield device, ends
        for _, _, writer in ends:
            writer.close()


async def until_reset(ends: Ends) -> None:
    async with asyncio.timeout(HANGS):
        for _, reader, _ in ends:
            with pytest.raises(ConnectionResetError):
                await reader.read()


async def test_a_reset_keeps_the_loop_from_nobody() -> None:
    async with connected() as (device, ends):
        switch = device._switch
        device.reset()
        assert device.connections == 0, "the guest has forgotten them at once"
        assert len(switch._ends) == COUNT - 1
        left = []
        while switch._ends:
            left.append(len(switch._ends))
            await asyncio.sleep(0)
        assert all(before - after <= 1 for before, after in itertools.pairwise(left))
        assert switch.share.held == 0
        await until_reset(ends)


async def test_a_device_that_is_closed_meanwhile_leaves_none() -> None:
    async with connected() as (device, ends):
        device.reset()
        device._switch.close()
        assert not device._switch._ends
        assert device._switch.share.held == 0
        await until_reset(ends)


async def test_the_last_words_of_all_reach_their_ends() -> None:
    """The device is closed behind the guest's end, and not before what that has said is told."""
    async with connected() as (device, ends):
        for number, (sock, _, _) in enumerate(ends):
            await sock.send(b"%d" % number)
        device.guest_ended("it has ended")
        await device.close()
        async with asyncio.timeout(HANGS):
            for number, (_, reader, _) in enumerate(ends):
                assert await reader.read() == b"%d" % number
