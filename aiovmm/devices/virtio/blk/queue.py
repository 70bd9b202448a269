"""One queue of a disk at work: chains go to native code as they come, and what that hands over is carried out."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiovmm.devices.limits import Gate
from aiovmm.devices.virtio.blk.counters import BlkCounters, Latency
from aiovmm.devices.virtio.blk.image import DiskImage
from aiovmm.devices.virtio.blk.protocol import Request, Status
from aiovmm.errors import ChainError, HostError
from aiovmm.native import ffi, lib, owners
from aiovmm.virtqueue import Batch, Next, Queue

if TYPE_CHECKING:
    from aiovmm.devices.virtio.blk.extents import Extent
    from aiovmm.devices.virtio.blk.service import BlkService

__all__ = ["QueueService"]

_LOOK = lib.AVMM_BLK_LOOK
_MORE = lib.AVMM_BLK_MORE
_OTHERS = lib.AVMM_BLK_OTHERS
_MALFORMED = {
    lib.AVMM_BLK_NO_HEADER: "it is shorter than the header of a request",
    lib.AVMM_BLK_NO_STATUS: "it has no room for a status byte",
    lib.AVMM_RING_NO_ROOM: "it lies in too many pieces of memory",
}


class QueueService:
    """One queue. `bit` stands for it in the masks that native code returns."""

    def __init__(self, owner: BlkService, queue: Queue, depth: int) -> None:
        self.bit = 1 << queue.index % lib.AVMM_BLK_QUEUE_BITS
        self._owner = owner
        self._queue = queue
        vq = queue.native
        self._native = native = ffi.new("struct avmm_blk_queue *")
        owners.link(native, disk=owner.disk, vq=vq, mem=queue.memory.table)
        native.bit = self.bit
        room = min(vq.max_chain + 4, 1024)  # a few more than descriptors: buffers may cross regions of memory
        error = -lib.avmm_blk_queue_open(native, min(depth, queue.size), room)
        if error:
            raise HostError("allocating the requests of a disk", error)
        self._slot: asyncio.Future[None] | None = None
        self._gate = Gate(owner.limiter)
        self._processors = owner.affinity.get(queue.index)

    async def serve(self) -> None:
        """Serve the queue for ever. Raises ChainError or GuestFault when the driver breaks the rules."""
        while True:
            await self._queue.serve(self._turn)
            await self._wait_for_slot()
            await self._gate.wait()

    def _turn(self) -> Next:
        """What there is, as far as there are slots for it."""
        native = self._native
        if (not native.n_free or native.starved) and not lib.avmm_blk_can_take(native):
            return Next.RETURN
        if not self._gate.open():
            return Next.RETURN
        mask = lib.avmm_blk_serve(native)
        if mask:
            if mask & _OTHERS:  # first, for nobody else tells them: what fails for this disk is not to cost them that
                self._owner.heed(mask)
            self._owner.published(mask)
            if mask & _LOOK and native.malformed:
                self._refuse()
        return Next.TURN if mask & _MORE else Next.KICK

    def published(self) -> None:
        """Some requests were returned: interrupt."""
        self._queue.flush()

    def cancel(self) -> int:
        """What the kernel has of it and has not begun ends; the mask."""
        return int(lib.avmm_blk_cancel(self._native))

    def wake(self) -> None:
        """Requests of the disk were returned: what this queue has waited for may be free."""
        if self._slot is not None and not self._slot.done():
            self._slot.set_result(None)

    async def _wait_for_slot(self) -> None:
        try:
            while not lib.avmm_blk_can_take(self._native):
                self._slot = asyncio.get_running_loop().create_future()
                await self._slot
        finally:
            self._slot = None

    def carry_out_handed(self) -> None:
        """Do, or have done, what native code does not."""
        native = self._native
        requests = [native.slots + slot for slot in ffi.unpack(native.handed, native.n_handed)]
        self._owner.disk.n_handed -= native.n_handed
        native.n_handed = 0
        transfers = []
        for request in requests:
            if request.type in (Request.DISCARD, Request.WRITE_ZEROES):
                self._carry_out(request)
            elif request.commits or (request.type == Request.FLUSH and self._owner.image.top_layer is not None):
                self._owner.perform(request, self._owner.image.flush, processors=self._processors)
            else:
                transfers.append(request)
        if transfers:
            self._owner.transfer(transfers, self._processors)

    def _carry_out(self, request: Any) -> None:
        """A discard or write-zeroes."""
        from aiovmm.devices.virtio.blk.extents import PAYLOAD_MAX, parse_extents

        kind = Request(request.type)
        buffer = bytearray(min(request.left, PAYLOAD_MAX + 1))
        lib.avmm_blk_payload(request, 0, owners.view(buffer), len(buffer))
        extents = parse_extents(kind, bytes(buffer), self._owner.disk.capacity)
        if isinstance(extents, Status):
            lib.avmm_blk_answer(request, extents)
            self._owner.published(lib.avmm_blk_publish(self._owner.disk))
            return
        image = self._owner.image
        action = image.discard if kind is Request.DISCARD else image.write_zeroes
        disk = self._owner.disk
        durable, stop = bool(disk.write_through), lambda: bool(disk.stopping)
        self._owner.perform(request, _apply, image, action, extents, durable, stop, processors=self._processors)

    def _refuse(self) -> None:
        """The last chain was malformed: raises, unless the driver has mended it meanwhile."""
        native = self._native
        code, native.malformed = native.malformed, 0
        if code in _MALFORMED:
            raise ChainError(_MALFORMED[code], native.malformed_head if native.malformed_head >= 0 else None)
        self._queue.put_back_batch(self._queue.pop_batch(Batch(1, 64)))

    @property
    def counters(self) -> BlkCounters:
        """Since activation."""
        n = self._native
        numbers = n.reads, n.writes, n.flushes, n.others, n.errors, n.read_bytes, n.written_bytes
        return BlkCounters(*numbers, _latency(n.read_latency), _latency(n.write_latency))

    def close(self) -> None:
        """Let go of guest memory. Idempotent."""
        lib.avmm_blk_queue_close(self._native)


def _apply(
    image: DiskImage,
    action: Callable[[Extent, Callable[[], bool]], int],
    extents: list[Extent],
    durable: bool,
    stop: Callable[[], bool],
) -> int:
    """In a thread: all extents in order, up to the first that fails or until `stop()`; 0 or an errno."""
    for extent in extents:
        if error := errno.ECANCELED if stop() else action(extent, stop):
            return error
    return image.flush() if durable else 0


def _latency(native: Any) -> Latency:
    return Latency(native.count, native.sum / 1e9, native.min / 1e9, native.max / 1e9)
