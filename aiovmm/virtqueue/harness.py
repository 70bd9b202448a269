"""A device under test, bound to driver queues without transport, VM or guest.

async with Harness(MyDevice()) as h:
    assert await h.request(0, [b"question"], [64]) == b"answer"
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from types import TracebackType

from aiovmm.errors import StateError, UsageError
from aiovmm.memory import AddressSpace, GuestMemory
from aiovmm.runtime.timeouts import time_limit
from aiovmm.virtqueue.bell import distinct
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.driver import Arena, DriverQueue, WaitLine
from aiovmm.virtqueue.features import RING_FEATURES
from aiovmm.virtqueue.runner import DeviceRunner
from aiovmm.virtqueue.status import Activate, Negotiation, Status

__all__ = ["Harness"]


class Harness:
    """Async context manager: opens the device, negotiates, and makes its queues live; resets and closes it at the end.

    `features`: what the driver accepts (default: all that is offered). `queue_sizes`: sizes that the driver chooses.
    `memory_size` in bytes. `start` and `shuffle`: see DriverQueue. An error of the device that the test has not looked for
    with `broken()` is raised at the end.
    """

    def __init__(
        self,
        device: VirtioDevice,
        *,
        features: int | None = None,
        queue_sizes: Sequence[int] | None = None,
        memory_size: int = 64 << 20,
        start: int = 0,
        shuffle: random.Random | None = None,
    ) -> None:
        self.device = device
        self.memory = GuestMemory.create([(0, memory_size)])
        self.device_memory: AddressSpace = self.memory  # put a translation in front of it before entering
        self.config_irq = WaitLine()
        self.errors: list[Exception] = []
        self.reported: list[Exception] = []  # by VirtioDevice.report
        self.queues: list[DriverQueue] = []
        offered = device.features | RING_FEATURES
        self.negotiation = Negotiation(offered, device.queue_sizes, device.accepts)
        self.features = offered if features is None else features
        self.arena = Arena(0x1000, memory_size - 0x1000)
        self.runner: DeviceRunner
        self._sizes = tuple(queue_sizes or device.queue_sizes)
        self._start = start
        self._shuffle = shuffle
        self._memory_size = memory_size
        self._fds: list[int] = []
        self._broke = asyncio.Event()

    async def __aenter__(self) -> Harness:
        self.runner = DeviceRunner(
            self.device,
            self.device_memory,
            lambda body: asyncio.get_running_loop().create_task(body, name=self.device.name),
            needs_reset=self.negotiation.needs_reset,
            on_error=self._failed,
        )
        self.device._notify_config = self._config_changed
        self.device._notify_error = self.reported.append
        self._fds = distinct(len(self._sizes), lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        try:
            await self.device.open()
            await self.start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()
        if kind is None and self.errors:
            raise self.errors[0]

    async def start(self) -> None:
        """The driver's initialization sequence (VIRTIO 1.2 §3.1.1) with fresh rings. Raises UsageError if the device refuses
        the features."""
        n = self.negotiation
        n.write_status(Status.ACKNOWLEDGE)
        n.write_status(Status.ACKNOWLEDGE | Status.DRIVER)
        for half in range(4):
            n.driver_feature_select = half
            n.write_driver_feature(self.features >> 32 * half & 0xFFFFFFFF)
        n.write_status(n.status | Status.FEATURES_OK)
        if not n.status & Status.FEATURES_OK:
            raise UsageError(f"{self.device.name} refuses the features {self.features:#x} of {n.offered:#x}")
        self.arena = Arena(0x1000, self._memory_size - 0x1000)
        self.queues = [self._queue(i, size) for i, size in enumerate(self._sizes)]
        for config, queue in zip(n.queues, self.queues, strict=True):
            vars(config).update(vars(queue.config(config.max_size)))
        for effect in n.write_status(n.status | Status.DRIVER_OK):
            assert isinstance(effect, Activate)
            await self.runner.activate(
                n.queues,
                effect.features,
                self._fds,
                [q.irq for q in self.queues],
                self.config_irq,
                [q.position for q in self.queues] if self._start else None,
            )

    async def reset(self) -> None:
        """The driver writes 0 to the status: the device stops."""
        self.negotiation.write_status(0)
        await self.runner.reset()
        self.negotiation.reset_done()
        self._broke.clear()

    async def request(
        self,
        queue: int,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        *,
        indirect: bool = False,
        timeout: float = 10.0,
    ) -> bytes:
        """Offer one chain, wait for it to come back, and return what was written. For one request at a time on a queue.
        Raises what the device raised if it breaks meanwhile, and TimeoutError."""
        q = self.queues[queue]
        if q.outstanding:
            raise StateError(f"queue {queue} has {q.outstanding} chains outstanding")
        q.add(readable, writable, indirect=indirect)
        q.kick()
        answer = asyncio.ensure_future(q.used(timeout=timeout))
        breaks = asyncio.ensure_future(self._broke.wait())
        try:
            await asyncio.wait([answer, breaks], return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise self.errors.pop(0) if self.errors else StateError(f"{self.device.name} needs a reset")
            (used,) = answer.result()
        finally:
            answer.cancel()
            breaks.cancel()
        return used.data

    async def broken(self, timeout: float = 10.0) -> Exception:
        """Wait for the device to ask for a reset (NEEDS_RESET and a configuration interrupt), and return why."""
        async with time_limit(timeout, "NEEDS_RESET from the device"):
            while not self.negotiation.status & Status.NEEDS_RESET:
                self.config_irq.clear()
                await self.config_irq.wait()
        return self.errors.pop(0)

    def _queue(self, index: int, size: int) -> DriverQueue:
        return DriverQueue(
            self.memory,
            self.arena,
            lambda: os.eventfd_write(self._fds[index], 1),
            size=size,
            features=self.features,
            start=self._start,
            shuffle=self._shuffle,
        )

    def _failed(self, device: VirtioDevice, exc: Exception) -> None:
        self.errors.append(exc)
        self._broke.set()

    def _config_changed(self) -> None:
        if self.negotiation.config_changed():
            self.config_irq.pulse()

    async def _close(self) -> None:
        await self.reset()
        await self.device.close()
        self.device._notify_config = self.device._notify_error = None
        for fd in set(self._fds):
            os.close(fd)
        self._fds.clear()
        self.memory.close()
