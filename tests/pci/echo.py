"""A small device to put on PCI: queue 0 answers each request with its text reversed; `break` breaks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiovmm.errors import GuestError
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.queue import Queue
from tests.limits import HANGS


class Echo(VirtioDevice):
    device_id = 4
    name = "echo"
    features = 1 << 3
    queue_sizes = (64, 16)

    def __init__(self) -> None:
        self.config = bytearray(b"abcdefgh")
        self.running = 0
        self.resets = 0
        self.stopping: asyncio.Event | None = None
        self.may_stop: asyncio.Event | None = None

    def read_config(self, offset: int, size: int) -> bytes:
        return bytes(self.config[offset : offset + size]).ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        if data == b"\xbb\xad":
            raise GuestError("that is no configuration")
        if offset + len(data) <= len(self.config):
            self.config[offset : offset + len(data)] = data

    def reset(self) -> None:
        self.resets += 1

    async def run(self, queues: list[Queue], features: int) -> None:
        self.running += 1
        try:
            async for chain in queues[0]:
                text = chain.read_all()
                if text == b"break":
                    raise GuestError("broken on demand")
                chain.write(text[::-1])
                queues[0].push(chain)
        finally:
            if self.may_stop is not None and self.stopping is not None:
                self.stopping.set()
                await self.may_stop.wait()
            self.running -= 1


async def until(condition: Callable[[], bool], timeout: float = HANGS) -> None:
    """Let the loop run until `condition` holds. Raises TimeoutError."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - what is waited for is a register
            await asyncio.sleep(0)
