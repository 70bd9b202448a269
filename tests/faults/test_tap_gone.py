"""A TAP goes while both sides send as fast as they can: its guest's link goes down, and another guest's traffic goes on."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest

from aiovmm.devices.virtio.net import HostAddress, NetDevice, TapBackend
from aiovmm.errors import PeerError
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio import netns
from tests.devices.virtio.net_guest import NetGuest, ready, until
from tests.limits import HANGS

BROADCAST = b"\xff" * 6
FRAME = BROADCAST + bytes.fromhex("2e0000000042") + b"\x88\xb5" + bytes(200)  # an EtherType for experiments


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with netns.namespace():
        yield


class Loaded:
    """A guest that sends without end, and is sent to."""

    def __init__(self, device: NetDevice, harness: Harness, name: str) -> None:
        self.device, self.harness, self.name = device, harness, name
        self.sent = 0
        self._guest = NetGuest(harness)
        self._guest.fill()
        self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(0x88B5))
        self._wire.bind((name, 0))

    async def sends(self) -> None:
        while True:
            for _ in range(16):
                self._guest.offer(FRAME)
            self._guest.tx.kick()
            done = 0
            while done < 16:
                done += len(await self._guest.tx.used(timeout=HANGS))
            self.sent += 16

    async def is_sent_to(self) -> None:
        while True:
            with suppress(OSError):  # full, or gone
                for _ in range(16):
                    self._wire.send(FRAME)
            self.drain()
            await asyncio.sleep(0)

    def drain(self) -> None:
        """Buffers go back at once."""
        if self._guest.rx.poll():
            self._guest.fill()

    def close(self) -> None:
        self._wire.close()

    async def goes_on(self) -> None:
        """In both directions."""
        sent, received = self.sent, self.device.counters.rx_packets
        await until(lambda: self.sent > sent + 200 and self.device.counters.rx_packets > received + 200, HANGS)


@asynccontextmanager
async def loaded(number: int) -> AsyncIterator[Loaded]:
    host = HostAddress(f"10.77.{number}.1", "255.255.255.0")
    device = NetDevice(TapBackend(f"load{number}", host=host), mac=bytes([0x2E, 0, 0, 0, 0, number]))
    async with Harness(device) as harness:
        await ready(device)
        guest = Loaded(device, harness, f"load{number}")
        tasks = [asyncio.ensure_future(guest.sends()), asyncio.ensure_future(guest.is_sent_to())]
        try:
            yield guest
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            guest.close()


async def goes(victim: Loaded, neighbour: Loaded) -> None:
    """Its guest is told by the link, the embedder by the link and the error; what it sends is taken, and comes to nothing."""
    await until(lambda: not victim.device.link, HANGS)
    await neighbour.goes_on()
    sent = victim.sent
    await until(lambda: victim.sent > sent + 200, HANGS)
    assert not neighbour.harness.reported
    assert not victim.harness.errors, "a device that can be used is not broken"


def told(victim: Loaded) -> bool:
    """Once, whatever is sent afterwards."""
    (error,) = victim.harness.reported
    return isinstance(error, PeerError) and "is gone" in str(error)


async def test_it_is_deleted() -> None:
    async with loaded(1) as victim, loaded(2) as neighbour:
        await victim.goes_on()
        await neighbour.goes_on()
        netns.ip("link del load1")
        await goes(victim, neighbour)
        assert told(victim)


@contextmanager
def other_namespace() -> Iterator[subprocess.Popen[bytes]]:
    """It is there as long as this process is."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo there; exec cat"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"there\n"
        yield holder


async def test_the_network_namespace_that_it_was_moved_to_goes_away() -> None:
    with other_namespace() as holder:
        async with loaded(1) as victim, loaded(2) as neighbour:
            await victim.goes_on()
            netns.ip(f"link set load1 netns {holder.pid}")
            holder.kill()
            await asyncio.to_thread(holder.wait)
            await goes(victim, neighbour)
            assert told(victim)
