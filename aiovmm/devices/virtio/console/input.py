"""The receive queue of a console: the guest's buffers are the only buffer, filled straight from what is written."""

from __future__ import annotations

from collections.abc import Callable

from aiovmm.errors import GuestError
from aiovmm.native import ffi, lib, owners
from aiovmm.runtime.event import Event
from aiovmm.virtqueue import Batch, Queue

__all__ = ["InputFiller"]


class InputFiller:
    """Serves one live queue. `invite` is called when there is room, after there may have been none."""

    def __init__(self, queue: Queue, invite: Callable[[], None]) -> None:
        self._queue = queue
        self._invite = invite
        self._batch = Batch(1, 4 * queue.size)
        self._at = ffi.new("struct avmm_input *", {"max_chains": queue.size})
        owners.link(self._at, heads=ffi.new("uint16_t[]", queue.size), lengths=ffi.new("uint32_t[]", queue.size))
        self._use_room()
        self._looked = Event()  # at the ring, which may be empty or malformed now
        self._error: GuestError | None = None

    async def serve(self) -> None:
        """Until cancelled. Raises GuestError for a malformed chain."""
        while True:
            await self._queue.wait()
            self.fill(b"")  # a malformed chain is told of before somebody types
            self._looked.clear()
            if self._error is None:
                self._invite()
                await self._looked.wait()
            if self._error is not None:
                raise self._error

    def fill(self, data: bytes) -> int:
        """Give the guest bytes; how many of them it had room for. Never raises; what is wrong ends `serve`."""
        queue, batch, at = self._queue, self._batch, self._at
        if not queue.enabled or self._error is not None:
            return 0
        taken: int = lib.avmm_queue_input(queue.native, queue.memory.table, at, data, len(data), batch.error)
        if at.returned:
            queue.flush_soon()
        if batch.error.code == lib.AVMM_RING_NO_ROOM and batch.grow():
            self._use_room()
            return taken + self.fill(data[taken:])
        if batch.error.code:
            self._error = queue.malformed(batch.error)
        self._looked.set()
        return taken

    def _use_room(self) -> None:
        owners.link(self._at, iov=self._batch.iov)
        self._at.max_iov = self._batch.max_iov
