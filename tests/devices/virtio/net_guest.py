"""A guest's network driver, over the virtqueue simulator: keeps receive buffers posted, merges, sends in any shape."""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from aiovmm.devices.virtio.net import NetDevice
from aiovmm.virtqueue.driver import Used
from aiovmm.virtqueue.harness import Harness
from tests.limits import HANGS

HEADER = struct.Struct("<BBHHHHH")  # struct virtio_net_hdr_v1
CONTROL_OK, CONTROL_ERR = b"\0", b"\1"


@dataclass(frozen=True)
class Header:
    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def pack(self) -> bytes:
        return HEADER.pack(*vars(self).values())


PLAIN = Header()


@dataclass(frozen=True)
class Packet:
    header: Header
    frame: bytes


async def until(condition: Callable[[], object], timeout: float = HANGS) -> None:
    """Wait for what no interrupt tells."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - what is waited for is outside of the program
            await asyncio.sleep(0.001)


async def ready(device: NetDevice) -> None:
    """The driver has been seen: from now on frames are taken."""
    await until(lambda: device.active_pairs)


class NetGuest:
    """The driver of pair `pair`. `sizes` gives the writable sizes of one receive chain."""

    def __init__(
        self,
        harness: Harness,
        *,
        pair: int = 0,
        mergeable: bool = True,
        sizes: Callable[[], list[int]] = lambda: [1526],
        indirect: bool = False,
    ) -> None:
        self.harness = harness
        self.rx = harness.queues[2 * pair]
        self.tx = harness.queues[2 * pair + 1]
        self.mergeable = mergeable
        self.indirect = indirect
        self._sizes = sizes
        self._chains: deque[Used] = deque()

    def fill(self, most: int | None = None) -> int:
        """Post receive buffers, as many as there is room for; how many."""
        n = 0
        while most is None or n < most:
            sizes = self._sizes()
            if len(self.rx.free) < (1 if self.indirect else len(sizes)):
                break
            self.rx.add([], sizes, indirect=self.indirect)
            n += 1
        self.rx.kick()
        return n

    async def receive(self, timeout: float = HANGS) -> Packet:
        """The next packet. Buffers are posted anew."""
        first = await self._next(timeout)
        header = Header(*HEADER.unpack_from(first.data))
        data = first.data
        for _ in range(header.num_buffers - 1):
            data += (await self._next(timeout)).data
        assert self.mergeable or header.num_buffers == 1
        self.fill()
        return Packet(header, data[HEADER.size :])

    async def _next(self, timeout: float) -> Used:
        while not self._chains:
            self._chains.extend(await self.rx.used(timeout=timeout))
        return self._chains.popleft()

    def offer(self, frame: bytes, header: Header = PLAIN, cuts: list[int] | None = None) -> None:
        """Hand a frame over, without a kick. `cuts`: where the packet, header included, is cut into buffers."""
        packet = header.pack() + frame
        edges = [0, *sorted(cuts or [len(header.pack())]), len(packet)]
        parts = [packet[a:b] for a, b in itertools.pairwise(edges)]
        self.tx.add(parts, indirect=self.indirect)

    async def send(self, frame: bytes, header: Header = PLAIN, cuts: list[int] | None = None) -> None:
        """Send a frame and wait until the device is done with it."""
        self.offer(frame, header, cuts)
        self.tx.kick()
        await self.tx.used()


def random_cuts(rand: random.Random, size: int, most: int = 6) -> list[int]:
    """Where a packet of `size` bytes could be cut; equal ones make empty buffers."""
    return [rand.randint(0, size) for _ in range(rand.randint(0, most))]
