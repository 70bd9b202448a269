"""A virtio device running on rings in another process's memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from aiovmm.errors import GuestError, PeerError
from aiovmm.memory import GuestMemory
from aiovmm.native import lib
from aiovmm.vhost_user.channel import close_fds
from aiovmm.vhost_user.inflight import InflightRecord
from aiovmm.vhost_user.server_state import ServerState
from aiovmm.virtqueue.config import QueueConfig, QueuePosition
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.queue import Queue

__all__ = ["RingFds", "Rings"]


@dataclass
class RingFds:
    """A ring's eventfds, owned; also its interrupt line."""

    kick: int = -1
    call: int = -1
    err: int = -1

    def pulse(self) -> None:
        """Interrupt the driver."""
        _signal(self.call)

    def replace(self, what: str, fd: int) -> None:
        """Take a new eventfd over, or none (-1)."""
        old = getattr(self, what)
        setattr(self, what, fd)
        if old >= 0:
            close_fds([old])

    def close(self) -> None:
        """Close them all."""
        for what in ("kick", "call", "err"):
            self.replace(what, -1)


@dataclass
class Rings:
    """Runs `device` on the live rings of `state`. Whenever their number changes the device's coroutine is started anew on the
    queues that there are then; what it had in flight is taken again, by the front end's record or one of our own."""

    device: VirtioDevice
    state: ServerState
    on_error: Callable[[Exception], None]
    memory: GuestMemory | None = None
    shared: InflightRecord | None = None
    fds: list[RingFds] = field(default_factory=list)
    _private: dict[int, InflightRecord] = field(default_factory=dict)
    _queues: list[Queue] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.fds = [RingFds() for _ in self.state.rings]

    async def update(self) -> None:
        """Serve the rings that are live now. Raises PeerError for rings that cannot be used."""
        await self.halt()
        if not any(ring.live for ring in self.state.rings):
            return
        if self.memory is None or not self.device.accepts(self.state.features):
            raise PeerError(f"{self.device.name} does not work with the features {self.state.features:#x}")
        try:
            for index, fds in enumerate(self.fds):
                ring = self.state.rings[index]
                config = self._config(index)
                if fds.kick < 0:  # a device may wait on a queue that is not live
                    fds.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                queue = Queue.activate(
                    config,
                    self.memory,
                    index=index,
                    features=self.state.features,
                    kick_fd=fds.kick,
                    interrupt=fds,
                    position=QueuePosition(ring.base, ring.base),
                )
                self._queues.append(queue)
        except GuestError as exc:
            raise PeerError(f"a ring cannot be used: {exc}") from exc
        body = self._run(self._queues, self.state.features)
        self._task = asyncio.get_running_loop().create_task(body, name=self.device.name)

    async def halt(self) -> None:
        """Stop the device's coroutine; each ring's base is then where it stands. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        for queue in self._queues:
            if queue.enabled:
                self.state.rings[queue.index].base = queue.position.last_avail
            queue.close()
        self._queues = []

    def forget(self, index: int) -> None:
        """The ring has been stopped by the front end: a later start is a new one."""
        record = self._private.pop(index, None)
        if record is not None:
            record.close()

    def forget_all(self) -> None:
        """The device was reset: nothing is in flight any more. No ring may be live."""
        for index in list(self._private):
            self.forget(index)
        self.use_record(None)

    async def close(self) -> None:
        """Stop and let go of memory and fds. Idempotent."""
        await self.halt()
        self.forget_all()
        self.use_memory(None)
        for fds in self.fds:
            fds.close()

    def use_memory(self, memory: GuestMemory | None) -> None:
        """Take over new memory. No ring may be live."""
        old, self.memory = self.memory, memory
        if old is not None:
            old.close()

    def use_record(self, record: InflightRecord | None) -> None:
        """Take over a new in-flight record. No ring may be live."""
        old, self.shared = self.shared, record
        if old is not None:
            old.close()

    def _config(self, index: int) -> QueueConfig:
        ring, most = self.state.rings[index], self.state.queue_sizes[index]
        if not ring.live or ring.address is None:
            return QueueConfig(most)
        record = self.shared
        if record is None:
            record = self._private.get(index)
        if record is None:
            record = self._private[index] = InflightRecord(index + 1, ring.size)
        return QueueConfig(
            most,
            ring.size,
            self.state.translate(ring.address.desc, 16 * ring.size),
            self.state.translate(ring.address.avail, 6 + 2 * ring.size),
            self.state.translate(ring.address.used, 6 + 8 * ring.size),
            ready=True,
            inflight=record.native(index, ring.size),
        )

    async def _run(self, queues: list[Queue], features: int) -> None:
        try:
            await self.device.run(queues, features)
        except Exception as exc:
            for fds in self.fds:
                _signal(fds.err)
            self.on_error(exc)
        finally:
            for queue in queues:
                queue.flush()


def _signal(fd: int) -> None:
    if fd >= 0:
        lib.avmm_event_signal(fd)  # the front end has it as well, and may have filled it, and made it blocking
