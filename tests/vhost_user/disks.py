"""A disk in memory, small enough to see through, and requests to disks."""

from __future__ import annotations

import asyncio
import struct

from aiovmm.devices.virtio.blk.protocol import Feature
from aiovmm.virtqueue.chain import Chain
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.queue import Queue

SECTOR = 512


class RamDisk(VirtioDevice):
    """Serves reads and writes of `data`; `gate`, while cleared, holds requests back after they were taken."""

    device_id = 2
    name = "ram disk"
    features = int(Feature.FLUSH | Feature.MQ | Feature.CONFIG_WCE)

    def __init__(self, data: bytearray | memoryview, queues: int = 1, queue_size: int = 128) -> None:
        self.data = data
        self.queue_sizes = (queue_size,) * queues
        self.config = bytearray(60)
        self.config[:8] = (len(data) // SECTOR).to_bytes(8, "little")
        self.gate = asyncio.Event()
        self.gate.set()
        self.taken = 0

    def read_config(self, offset: int, size: int) -> bytes:
        return bytes(self.config[offset : offset + size]).ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        self.config[offset : offset + len(data)] = data

    async def run(self, queues: list[Queue], features: int) -> None:
        async with asyncio.TaskGroup() as group:
            for queue in queues:
                group.create_task(self._serve(queue))

    async def _serve(self, queue: Queue) -> None:
        async for chain in queue:
            self.taken += 1
            await self.gate.wait()
            self.answer(chain)
            queue.push(chain)

    def answer(self, chain: Chain) -> None:
        """Carry a request out."""
        kind, _, sector = struct.unpack("<IIQ", chain.read(16))
        at = sector * SECTOR
        if kind == 0:
            chain.write(self.data[at : at + chain.writable_size - 1])
        elif kind == 1:
            content = chain.read(chain.unread)
            self.data[at : at + len(content)] = content
        chain.write(bytes(chain.room))  # zeros: an empty serial for GET_ID, and the status


def write_header(sector: int) -> bytes:
    return struct.pack("<IIQ", 1, 0, sector)


def read_header(sector: int) -> bytes:
    return struct.pack("<IIQ", 0, 0, sector)
