"""A program: serves an image file as a disk, each request `delay` seconds late and out of order."""

from __future__ import annotations

import asyncio
import mmap
import random
import sys
import traceback
from pathlib import Path

from aiovmm.testing.vhost_user_backend import VhostUserServer
from aiovmm.virtqueue.chain import Chain
from aiovmm.virtqueue.queue import Queue
from tests.vhost_user.disks import RamDisk


class SlowDisk(RamDisk):
    """Answers in another order than it is asked."""

    delay = 0.0

    async def _serve(self, queue: Queue) -> None:
        async with asyncio.TaskGroup() as group:
            async for chain in queue:
                group.create_task(self._later(queue, chain))

    async def _later(self, queue: Queue, chain: Chain) -> None:
        await asyncio.sleep(random.uniform(0, self.delay))
        self.answer(chain)
        queue.push(chain)


def serve_disk(path: str, image: str, delay: float) -> None:
    """Until it is killed."""
    with Path(image).open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        disk = SlowDisk(memoryview(mapping))
        disk.delay = delay
        asyncio.run(_forever(disk, path))


def _complain(error: Exception) -> None:
    traceback.print_exception(error)


async def _forever(disk: SlowDisk, path: str) -> None:
    async with VhostUserServer(disk, path, on_error=_complain):
        await asyncio.Event().wait()


if __name__ == "__main__":
    serve_disk(sys.argv[1], sys.argv[2], float(sys.argv[3]))
