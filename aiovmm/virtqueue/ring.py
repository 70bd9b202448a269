"""Binding a queue's three areas to host memory: done once, at activation.

A translation that changes under a live queue does not move its rings: their pages stay mapped. `ring_stands` tells whether they
are still where the translation has them; if not, the device is to be stopped. Buffers are translated anew for every chain.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from aiovmm.errors import ChainError, GuestError, GuestFault
from aiovmm.memory import PAGE_SIZE, AddressSpace
from aiovmm.native import ffi, lib, owners
from aiovmm.runtime.dataclass import dataclass
from aiovmm.virtqueue.config import QueueConfig, QueuePosition
from aiovmm.virtqueue.features import EVENT_IDX, INDIRECT_DESC

__all__ = ["Ring", "close_ring", "open_ring", "position_of", "ring_stands", "what_is_wrong"]

_CHAIN_MIN = 32  # Linux fills indirect tables with up to MAX_SKB_FRAGS + 2 descriptors, however small the ring


_PARTS = ("desc", "avail", "used")
_RIGHTS = (lib.AVMM_MEM_READ, lib.AVMM_MEM_READ, lib.AVMM_MEM_READ | lib.AVMM_MEM_WRITE)

_REASONS = {
    lib.AVMM_RING_BAD_INDEX: "the available index is further ahead than there are free descriptors",
    lib.AVMM_RING_BAD_HEAD: "its head is outside the descriptor table",
    lib.AVMM_RING_BAD_NEXT: "a next index is outside the descriptor table",
    lib.AVMM_RING_TOO_LONG: "it loops, or is longer than the queue",
    lib.AVMM_RING_TOO_LARGE: "it is longer than 2^32 bytes in total",
    lib.AVMM_RING_BAD_ORDER: "a device-readable descriptor follows a device-writable one",
    lib.AVMM_RING_BAD_INDIRECT: "its indirect descriptor is not legal",
    lib.AVMM_RING_NO_ROOM: "it lies in too many pieces of memory",
}


@dataclass(frozen=True)
class Ring:
    """`queue` is `struct avmm_queue *`, which keeps the memory of the ring."""

    queue: Any


def open_ring(config: QueueConfig, memory: AddressSpace, features: int, position: QueuePosition | None) -> Ring:
    """Resolve a checked configuration. Raises GuestFault if a part of the ring is not in memory."""
    queue = ffi.new("struct avmm_queue *")
    queue.size = config.size
    # §2.7.5.3.1: no chain is longer than the queue size of the device, which is the one that it offers
    queue.max_chain = max(config.max_size, _CHAIN_MIN)
    queue.event_idx = bool(features & EVENT_IDX)
    queue.indirect = bool(features & INDIRECT_DESC)
    held: list[Any] = []
    for name, (address, size), right in zip(_PARTS, config.parts, _RIGHTS, strict=True):
        found = ffi.new("uint64_t[]", size // PAGE_SIZE + 2)
        if lib.avmm_ring_bind(owners.part(queue, name), memory.table, address, size, right, found) < 0:
            raise GuestFault(address, size, "memory, as a ring has to be")
        held += found, *_hold(memory, address, size)
    owners.keep(queue, *held)
    if position is not None:
        queue.last_avail = position.last_avail
        queue.used_idx = queue.signalled = position.used_idx
        if not position.told:
            queue.unsignalled = 1 << 16  # the driver's interrupt may have been lost with the machine: give one more
        if position.again:
            owners.link(queue, again=ffi.new("uint16_t[]", position.again))
            queue.n_again = len(position.again)
    if config.inflight is not None:
        again = ffi.new("uint16_t[]", config.size)
        lib.avmm_queue_recover(queue, config.inflight, again)
        owners.keep(queue, config.inflight, again)
    return Ring(queue)


def position_of(queue: Any, size: int, heads: Sequence[int]) -> QueuePosition:
    """Where `struct avmm_queue *` stands if the chains with these `heads` were not taken, in the order in which they were.
    Those that the ring would give again by itself are left to it, the others, of which later ones have been returned, are
    `again`."""
    avail, used, told = int(queue.last_avail), int(queue.used_idx), not queue.unsignalled
    rest = [int(queue.again[i]) for i in range(queue.again_at, queue.n_again)]
    if not rest and len(heads) <= avail - used & 0xFFFF:
        first = avail - len(heads)
        if all(lib.avmm_queue_offered(queue, first + i & 0xFFFF) == head for i, head in enumerate(heads)):
            return QueuePosition(first & 0xFFFF, used, (), told)
    return QueuePosition(avail, used, (*heads, *rest), told)


def close_ring(ring: Ring) -> None:
    """Let go of guest memory, whoever still has the queue: native code then finds an empty ring of one entry, nobody's."""
    queue = ring.queue
    owners.link(queue, inflight=ffi.NULL, again=ffi.NULL)
    queue.size, queue.n_again = 1, 0
    queue.last_avail = queue.used_idx = queue.signalled = queue.unsignalled = queue.again_at = 0
    empty = ffi.new("uint64_t[]", 4)  # as long as the longest of the three parts, and the words behind it
    for name in _PARTS:
        part = owners.part(queue, name)
        part.skew, part.host = 0, owners.address(empty)
    owners.drop(queue)
    owners.keep(queue, empty)


def ring_stands(ring: Ring, config: QueueConfig, memory: AddressSpace) -> None:
    """Raise GuestFault if a part of a live ring is not in memory any more, or elsewhere in it."""
    queue = ring.queue
    now = ffi.new("struct avmm_ring_part *")
    for part, (address, size), right in zip((queue.desc, queue.avail, queue.used), config.parts, _RIGHTS, strict=True):
        found = ffi.new("uint64_t[]", size // PAGE_SIZE + 2)
        bound = lib.avmm_ring_bind(now, memory.table, address, size, right, found) == 0
        if not bound or _pages(now, size) != _pages(part, size):
            raise GuestFault(address, size, "memory any more, where a live ring was")


def _pages(part: Any, size: int) -> list[int]:
    """The host address of each page that a part touches."""
    count = (part.skew + size + PAGE_SIZE - 1) // PAGE_SIZE
    if part.host:
        first = part.host - part.skew
        return [first + i * PAGE_SIZE for i in range(count)]
    return [int(part.pages[i]) for i in range(count)]


def _hold(memory: AddressSpace, address: int, size: int) -> list[memoryview]:
    """Views that keep the mapping of [address, address + size) alive, page by page."""
    end = address + size
    cuts = [address, *range((address // PAGE_SIZE + 1) * PAGE_SIZE, end, PAGE_SIZE), end]
    return [memory.slice(a, b - a) for a, b in itertools.pairwise(cuts)]


def what_is_wrong(error: Any) -> GuestError:
    """With a chain, by the `struct avmm_ring_error *` of who took it."""
    if error.code == lib.AVMM_RING_FAULT:
        return GuestFault(error.address, error.length)
    return ChainError(_REASONS[error.code], None if error.head < 0 else int(error.head))
