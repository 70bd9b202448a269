"""A disk at work, from DRIVER_OK to reset: one coroutine a queue, completions for all of them.

    kick --> wait() --> avmm_blk_serve: take chains, submit, take in what has completed at once --> interrupt
    ring readable ----> avmm_blk_ring_reap: take in completions, of all disks of the loop --------> interrupt

Python runs once for each wake-up, and once for each request only for those that native code hands over: discards, zeroing,
and, without io_uring, all that transfers data.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

from aiovmm.devices.limits import Limiter
from aiovmm.devices.virtio.blk.counters import BlkCounters
from aiovmm.devices.virtio.blk.engine import THREADS, Engine, Processors
from aiovmm.devices.virtio.blk.image import DiskImage
from aiovmm.devices.virtio.blk.queue import QueueService
from aiovmm.errors import HostError
from aiovmm.native import lib, owners
from aiovmm.runtime.event import Event
from aiovmm.virtqueue import Queue

__all__ = ["BlkService"]

_GO = 8  # transfers that a thread does in one go
_STEP = 0.001  # seconds until more of the requests that the kernel has are cancelled
_LONGEST = 0.5  # or those again that are still there: twice as long after each time, up to this
_OPERATIONS = {
    lib.AVMM_BLK_IN: "reading",
    lib.AVMM_BLK_OUT: "writing",
    lib.AVMM_BLK_FLUSH: "flushing",
    lib.AVMM_BLK_DISCARD: "discarding a part of",
    lib.AVMM_BLK_WRITE_ZEROES: "writing zeroes to",
}


class BlkService:
    """Serves `queues` until `run` is cancelled. `disk` is the `struct avmm_blk *` of the device, filled in; `report` hears what
    the host fails; `affinity` has where the threads of a queue run, by its index."""

    def __init__(
        self,
        disk: Any,
        engine: Engine,
        image: DiskImage,
        depth: int,
        limiter: Limiter,
        report: Callable[[Exception], None] = lambda error: None,
        affinity: Mapping[int, Processors] = MappingProxyType({}),
    ) -> None:
        self.disk = disk
        self.affinity = affinity
        self.engine = engine
        self._ring = engine.ring
        self.image = image
        self.limiter = limiter
        self._depth = depth
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._queues: list[QueueService] = []
        self._idle: asyncio.Future[None] | None = None
        self._cancelling: asyncio.TimerHandle | None = None
        self._past = BlkCounters()
        self._unstable = Event()
        self._stable: list[asyncio.Future[None]] = []

    async def run(self, queues: Sequence[Queue], give_up: Callable[[], bool] = lambda: True) -> None:
        """Until cancelled, or until a queue is malformed (ChainError, GuestFault). No I/O is in flight when it ends: if it
        is cancelled and `give_up()`, since that was given up, else since all requests were answered."""
        try:
            for queue in queues:
                if queue.enabled:
                    self._queues.append(QueueService(self, queue, self._depth))
            if self._ring is not None:
                self._ring.attach(self)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._flush_on_demand())
                for service in self._queues:
                    group.create_task(service.serve())
        except asyncio.CancelledError:  # a reset: nobody waits for the answers; if a queue broke, somebody may
            if give_up():
                self._stop()
            raise
        finally:
            try:
                await self._drain()
            finally:
                self._let_go()

    def _stop(self) -> None:
        """What is in flight ends soon."""
        self.heed(lib.avmm_blk_stop(self.disk))
        self._cancel()

    def _cancel(self, again: float = _STEP) -> None:
        """What the kernel has; in steps where there is no place for all cancellations at once, and `again` seconds later those
        that a cancellation has missed, as it may do with what is just being begun."""
        self._no_more_cancels()
        masks = [service.cancel() for service in self._queues]
        for mask in masks:
            self.heed(mask)
            self.published(mask)  # what had ended was taken in on the way, perhaps the last that somebody waits for
        if self.disk.in_flight and self._ring is not None:
            more = any(mask & lib.AVMM_BLK_MORE for mask in masks)
            after, later = (_STEP, again) if more else (again, min(2 * again, _LONGEST))
            self._cancelling = self._loop.call_later(after, self._cancel, later)

    def _no_more_cancels(self) -> None:
        if self._cancelling is not None:
            self._cancelling.cancel()
            self._cancelling = None

    def heed(self, mask: int) -> None:
        """What the mask says of the ring and of other disks."""
        if self._ring is not None:
            self._ring.heed(mask)

    def _let_go(self) -> None:
        self._no_more_cancels()
        if self.disk.in_flight:  # the loop does not wait for us: the kernel does with this memory what it is about to
            self.disk.abandoned = True
            return
        if self._ring is not None:
            self._ring.detach(self)
        self.disk.stopping = False
        self._past = self.counters
        self.forsaken()
        _release(self._stable)

    def refused(self, error: int) -> None:
        """Of what io_uring did not take nothing is lost."""
        self._report(
            HostError("submitting to io_uring", error, "threads do the disk's requests from now on, which is slower")
        )

    def forsaken(self) -> None:
        """Nobody hears of its requests any more."""
        for service in self._queues:
            service.close()
        self._queues.clear()

    @property
    def counters(self) -> BlkCounters:
        """Since the start, also when it has ended."""
        return sum((service.counters for service in self._queues), self._past)

    def make_stable(self) -> Awaitable[None]:
        """The driver chose write-through and may never flush again: what it has written until now must become stable too. The
        result is done when it is, or when the device is broken or reset."""
        self._unstable.set()
        done = self._loop.create_future()
        self._stable.append(done)
        return done

    async def _flush_on_demand(self) -> None:
        while True:
            await self._unstable.wait()
            self._unstable.clear()
            waiting, self._stable = self._stable, []
            try:
                error = await self.engine.call(self.image.flush)
            finally:
                _release(waiting)
            if error:
                raise HostError("flushing the disk image", error, "", str(self.image.path))

    def published(self, mask: int) -> None:
        """Requests were returned to the driver on the queues in `mask`."""
        if self.disk.abandoned:
            self._let_go()
            return
        if self.disk.failures:
            self._report_failures()
        for service in self._queues:
            if mask & service.bit:
                service.published()
            service.wake()
        if mask & lib.AVMM_BLK_LOOK:
            for service in self._queues:
                service.carry_out_handed()
        if mask & lib.AVMM_BLK_AGAIN:
            self.heed(mask)
        if self._idle is not None and not self._idle.done() and not self.disk.in_flight:
            self._idle.set_result(None)

    def _report_failures(self) -> None:
        disk = self.disk
        count, disk.failures = disk.failures, 0
        operation = _OPERATIONS.get(disk.failed_type, "working on")
        hint = "the guest was told of an I/O error" + (f", {count} times at once" if count > 1 else "")
        if self.image.guarded and disk.failure == errno.EPERM and disk.failed_type == lib.AVMM_BLK_OUT:
            hint += "; with image_type=raw it may write headers of other formats, too"
        self._report(HostError(f"{operation} the disk image", disk.failure, hint, str(self.image.path)))

    def perform(
        self, request: Any, work: Callable[..., int], *arguments: Any, processors: Processors | None = None
    ) -> None:
        """Have a thread do `work`, which returns 0 or an errno, and answer the request with that."""
        with self._refusing([request]):
            future = self.engine.submit(work, *arguments, processors=processors)
            future.add_done_callback(partial(self._performed, request))

    def _performed(self, request: Any, future: asyncio.Future[int]) -> None:
        try:
            status = future.result()
        except Exception as exc:
            status = errno.EIO
            self._report(exc)
        lib.avmm_blk_finish(request, status)
        self.published(lib.avmm_blk_publish(self.disk))

    def transfer(self, requests: list[Any], processors: Processors | None) -> None:
        """Have threads do reads, writes and flushes, and answer them: some in one go, since waking a thread is dear."""
        step = min(_GO, -(-len(requests) // THREADS))
        for at in range(0, len(requests), step):
            some = owners.pointers("struct avmm_blk_request *[]", requests[at : at + step], self)
            with self._refusing(requests[at:]):
                future = self.engine.submit(lib.avmm_blk_perform, some, len(some), processors=processors)
                future.add_done_callback(partial(self._transferred, some))
                continue
            return

    def _transferred(self, some: Any, future: asyncio.Future[None]) -> None:
        try:
            future.result()
        except Exception as exc:
            self._report(exc)
            for request in some:
                lib.avmm_blk_finish(request, errno.EIO)
        else:
            lib.avmm_blk_finish_performed(some, len(some))
        self.published(lib.avmm_blk_publish(self.disk))

    @contextmanager
    def _refusing(self, requests: Iterable[Any]) -> Iterator[None]:
        """Where no thread could be started the driver may try again. Whatever fails, none of `requests` stays in flight, or a
        reset would not end."""
        try:
            yield
        except Exception as exc:
            for request in requests:
                lib.avmm_blk_finish(request, errno.EAGAIN)
            self.published(lib.avmm_blk_publish(self.disk))
            if not isinstance(exc, HostError):
                raise

    async def _drain(self) -> None:
        """Until no I/O is in flight, however often this is cancelled: guest memory must not be let go before."""
        cancelled: asyncio.CancelledError | None = None
        while self.disk.in_flight:
            self._idle = self._loop.create_future()
            try:
                await self._idle
            except asyncio.CancelledError as exc:
                cancelled = exc
                self._stop()
        if cancelled is not None:
            raise cancelled


def _release(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
