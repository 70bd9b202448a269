"""The native arrays that a batch of chains is taken into, reused from batch to batch; and the batches of a queue, in turn."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from aiovmm.memory import AddressSpace
from aiovmm.native import ffi, lib
from aiovmm.native.room import room
from aiovmm.runtime.turns import next_turn
from aiovmm.virtqueue.chain import Chain

if TYPE_CHECKING:
    from aiovmm.virtqueue.queue import Queue

__all__ = ["IOV_LIMIT", "Batch", "Batches"]

IOV_LIMIT = 1 << 16
"""Segments of one chain at most. Caps what a guest can make us allocate by mapping one buffer in tiny pieces (an IOMMU)."""

_CHAIN = struct.Struct("=IIIHxxQQ")  # struct avmm_chain
_IOVEC = struct.Struct("=QQ")  # struct iovec
assert _CHAIN.size == ffi.sizeof("struct avmm_chain")
assert _IOVEC.size == ffi.sizeof("struct iovec")


class Batch:
    """Room for `max_chains` chains with `max_iov` segments in all. `chains` is `struct avmm_chain[]`, `iov` is
    `struct iovec[]` of host addresses; both hold until the next take. Guest memory must outlive their use.

    A chain needs as many segments as it has descriptors, or more where a translation splits its buffers: then the arrays
    grow, up to `limit` segments, so look at `iov` again after each take. Mind IOV_MAX (1024) before a system call.
    """

    def __init__(self, max_chains: int, max_iov: int, *, addresses: bool = False, limit: int = IOV_LIMIT) -> None:
        self.max_chains = max_chains
        self.max_iov = max_iov
        self.limit = limit
        self.count = 0
        self.chains: Any = room("struct avmm_chain[]", max_chains)
        self.iov: Any = room("struct iovec[]", max_iov)
        self.addresses: Any = room("uint64_t[]", max_iov) if addresses else ffi.NULL
        self.error: Any = ffi.new("struct avmm_ring_error *")

    def take(self, queue: Any, table: Any) -> int:
        """Fill from the `struct avmm_queue *`: the number of chains, or a negative code with `error` filled."""
        while True:
            n: int = lib.avmm_queue_pop(
                queue, table, self.chains, self.max_chains, self.iov, self.addresses, self.max_iov, self.error
            )
            if n != lib.AVMM_RING_NO_ROOM or not self.grow():
                break
        self.count = max(n, 0)
        return n

    def grow(self) -> bool:
        """Room for four times as many segments, after AVMM_RING_NO_ROOM; what was taken is done with. False: at the limit."""
        if self.max_iov >= self.limit:
            return False
        self.max_iov = min(4 * self.max_iov, self.limit)
        self.iov = room("struct iovec[]", self.max_iov)
        if self.addresses != ffi.NULL:
            self.addresses = room("uint64_t[]", self.max_iov)
        return True

    def unpack(self, memory: AddressSpace, owner: object = None) -> list[Chain]:
        """The chains as views of `memory`, which keep its mapping alive. Needs `addresses`."""
        if not self.count:
            return []
        # One conversion for all: reading field by field through cffi would cost more than the rest.
        rows = list(_CHAIN.iter_unpack(ffi.buffer(self.chains, self.count * _CHAIN.size)))
        total = rows[-1][0] + rows[-1][1] + rows[-1][2]
        addresses = ffi.unpack(self.addresses, total) if total else []
        sizes = [size for _, size in _IOVEC.iter_unpack(ffi.buffer(self.iov, total * _IOVEC.size))] if total else []
        views = list(map(memory.slice, addresses, sizes))
        return [
            Chain(
                head,
                [view.toreadonly() for view in views[first : first + n_read]],
                views[first + n_read : first + n_read + n_write],
                read_bytes,
                write_bytes,
                owner,
            )
            for first, n_read, n_write, head, read_bytes, write_bytes in rows
        ]


class Batches:
    """Asynchronous iterator over the batches of a queue."""

    def __init__(self, queue: Queue, batch: Batch) -> None:
        self._queue = queue
        self._batch = batch
        self._again = False

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> Batch:
        if self._again:
            await next_turn()
        self._again = True
        while not self._queue.pop_batch(self._batch):
            await self._queue.wait()
        return self._batch
