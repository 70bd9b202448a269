"""The queue pairs that are in use, each two coroutines; the driver chooses how many (VIRTIO 1.2 §5.1.6.5.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiovmm.devices.limits import Limiter
from aiovmm.devices.virtio.net.backend import NetBackend
from aiovmm.devices.virtio.net.pump import Ended, Receiver, Transmitter
from aiovmm.devices.virtio.net.watch import FdWatch
from aiovmm.virtqueue.queue import Queue

__all__ = ["ActivePairs"]


class ActivePairs:
    """Runs the first `count` pairs as tasks of `group`, behind a limiter for what they receive and one for what they send.
    `close` when the group has ended."""

    def __init__(
        self,
        backend: NetBackend,
        queues: Sequence[Queue],
        group: asyncio.TaskGroup,
        on_end: Ended,
        limiters: tuple[Limiter, Limiter],
    ) -> None:
        self.count = 0
        self._backend = backend
        self._queues = queues
        self._group = group
        self._on_end = on_end
        self._limiters = limiters
        self._limited: list[tuple[Limiter, Any]] = []  # and the native state
        self._watches: list[FdWatch] = []
        self._tasks: list[tuple[asyncio.Task[None], asyncio.Task[None]]] = []

    async def begin(self, features: int, count: int = 1, *, fresh: bool = True) -> None:
        """Start with `count` pairs: with one for a `fresh` driver, as every one expects. Raises OSError."""
        for port in self._backend.ports:
            port.begin(features, fresh=fresh)
            self._limited += zip(self._limiters, (port.rx, port.tx), strict=True)
        for limiter, state in self._limited:
            limiter.attach(state)
        self._watches = [FdWatch(port.fd) for port in self._backend.ports]
        await self.set_count(count)

    async def set_count(self, count: int) -> None:
        """Use the first `count` pairs; those that are not used any more have stopped when it returns. Raises OSError."""
        while self.count > count:
            self.count -= 1
            await _stop(self._tasks.pop())
            self._watches[self.count].close()
        if not self._backend.ports[0].ended:
            await self._backend.activate(count)
        while self.count < count:
            i, self.count = self.count, self.count + 1
            port, watch = self._backend.ports[i], self._watches[i]
            receiver = Receiver(self._queues[2 * i], port, watch, self._on_end, self._limiters[0])
            transmitter = Transmitter(self._queues[2 * i + 1], port, watch, self._on_end, self._limiters[1])
            self._tasks.append((self._group.create_task(receiver.run()), self._group.create_task(transmitter.run())))

    def close(self) -> None:
        """Watch no descriptor any more."""
        for watch in self._watches:
            watch.close()
        for limiter, state in self._limited:
            limiter.detach(state)


async def _stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
