"""The guest's side of a virtqueue, for tests: a driver that follows the specification, or breaks it on demand.

It lays rings and buffers out in guest memory, offers chains of any shape, kicks and takes interrupts by the EVENT_IDX and
flag rules of VIRTIO 1.2 §2.7, and can run in a thread of its own while the device runs in the loop, as a vCPU does.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aiovmm.errors import UsageError
from aiovmm.memory import GuestMemory
from aiovmm.native import lib
from aiovmm.runtime.timeouts import time_limit
from aiovmm.virtqueue.config import QueueConfig, QueuePosition
from aiovmm.virtqueue.features import EVENT_IDX, INDIRECT_DESC, RING_FEATURES

__all__ = ["INDIRECT", "NEXT", "WRITE", "Arena", "Descriptor", "DriverQueue", "Used", "WaitLine"]

NEXT, WRITE, INDIRECT = 1, 2, 4  # descriptor flags, §2.7.5
_NO_INTERRUPT = 1  # avail.flags
_NO_NOTIFY = 1  # used.flags
_FILL = b"\xa5"  # what a writable buffer holds before the device writes it


class Arena:
    """Hands out guest memory in [base, base + size) and takes it back. Raises UsageError when it is full."""

    def __init__(self, base: int, size: int) -> None:
        self._next = base
        self._end = base + size
        self._free: dict[tuple[int, int], list[int]] = {}

    def take(self, size: int, align: int = 16) -> int:
        """Address of `size` bytes, aligned."""
        free = self._free.get((size, align))
        if free:
            return free.pop()
        address = -(-self._next // align) * align
        if address + size > self._end:
            raise UsageError(f"the driver's memory is used up: {size} bytes more do not fit")
        self._next = address + size
        return address

    def give(self, address: int, size: int, align: int = 16) -> None:
        """Give back what `take` returned for the same size and alignment."""
        self._free.setdefault((size, align), []).append(address)


@dataclass(frozen=True)
class Descriptor:
    """`struct virtq_desc` (§2.7.5), as the driver writes it."""

    address: int
    length: int
    flags: int = 0
    next: int = 0

    def pack(self) -> bytes:
        """Its 16 bytes."""
        return struct.pack("<QIHH", self.address, self.length, self.flags, self.next)


@dataclass(frozen=True)
class Used:
    """A chain that came back: its head, the length that the device gave, and what the writable buffers hold now."""

    head: int
    length: int
    buffers: list[bytes]

    @property
    def data(self) -> bytes:
        """What the device says it has written."""
        return b"".join(self.buffers)[: self.length]


@dataclass
class _Pending:
    indexes: list[int]
    buffers: list[tuple[int, int]] = field(default_factory=list)  # all, to be given back
    writable: list[tuple[int, int]] = field(default_factory=list)


class WaitLine:
    """An interrupt line that counts its pulses and wakes who waits. Pulsed in the loop's thread."""

    def __init__(self) -> None:
        self.pulses = 0
        self._event = asyncio.Event()

    def pulse(self) -> None:
        """One interrupt."""
        self.pulses += 1
        self._event.set()

    def clear(self) -> None:
        """Forget the interrupts so far; `wait` waits for the next."""
        self._event.clear()

    async def wait(self) -> None:
        """Until there was an interrupt since `clear`."""
        await self._event.wait()


class DriverQueue:
    """The driver's half of one queue of `size` descriptors.

    `kick_device` rings the doorbell. `translate` maps a guest address to what the device is to be told (behind an IOMMU).
    `start` is where both ring indices begin, to meet the wrap at 65536 early; the device starts at `position`. With `shuffle`
    free descriptors are taken in random order.
    """

    def __init__(
        self,
        memory: GuestMemory,
        arena: Arena,
        kick_device: Callable[[], None],
        *,
        size: int = 256,
        features: int = RING_FEATURES,
        start: int = 0,
        translate: Callable[[int], int] = lambda address: address,
        shuffle: random.Random | None = None,
    ) -> None:
        self.memory = memory
        self.arena = arena
        self.size = size
        self.event_idx = bool(features & EVENT_IDX)
        self.indirect_allowed = bool(features & INDIRECT_DESC)
        self.irq = WaitLine()
        self.kicks = 0
        self.desc = arena.take(16 * size, 4096)
        self.avail = arena.take(6 + 2 * size, 4096)
        self.used_ring = arena.take(6 + 8 * size, 4096)
        self.position = QueuePosition(start, start)
        self._kick_device = kick_device
        self._translate = translate
        self._avail_host = memory.host_address(self.avail, 6 + 2 * size)
        self._used_host = memory.host_address(self.used_ring, 6 + 8 * size)
        self._avail_idx = self._kicked_idx = self._last_used = start
        self._pending: dict[int, _Pending] = {}
        self._shuffle = shuffle
        self.free = list(range(size - 1, -1, -1))
        for part, length in ((self.desc, 16 * size), (self.avail, 6 + 2 * size), (self.used_ring, 6 + 8 * size)):
            memory.write(part, bytes(length))
        lib.avmm_store16(self._avail_host + 2, start)
        lib.avmm_store16(self._used_host + 2, start)
        self._set_used_event(start)

    def config(self, max_size: int | None = None) -> QueueConfig:
        """What the transport is told."""
        return QueueConfig(
            max_size=max_size or self.size,
            size=self.size,
            desc=self._translate(self.desc),
            avail=self._translate(self.avail),
            used=self._translate(self.used_ring),
            ready=True,
        )

    @property
    def outstanding(self) -> int:
        """Chains that the device has not returned."""
        return len(self._pending)

    # -- offering ------------------------------------------------------------------------------------------------------

    def add(
        self, readable: Sequence[bytes] = (), writable: Sequence[int] = (), *, indirect: bool = False, direct: int = 0
    ) -> int:
        """Offer one chain of buffers with the given content, then of the given sizes in bytes. With `indirect` all but the
        first `direct` descriptors stand in an indirect table. Returns the head. Raises UsageError if the ring is full."""
        count = len(readable) + len(writable)
        if indirect and not self.indirect_allowed:
            raise UsageError("VIRTIO_F_INDIRECT_DESC was not negotiated")
        if count == 0 or count - indirect < direct:
            raise UsageError(f"a chain of {count} buffers cannot have {direct} direct ones")
        pending = _Pending(self._claim(direct + 1 if indirect else count))
        parts = []
        for content in readable:
            address = self._buffer(pending, len(content))
            self.memory.write(address, content)
            parts.append(Descriptor(self._translate(address), len(content)))
        for size in writable:
            address = self._buffer(pending, size)
            self.memory.write(address, _FILL * size)
            pending.writable.append((address, size))
            parts.append(Descriptor(self._translate(address), size, WRITE))
        if indirect:
            table = self.table(_linked(parts[direct:], range(len(parts) - direct)), pending)
            parts[direct:] = [Descriptor(table, 16 * (len(parts) - direct), INDIRECT)]
        for index, descriptor in zip(pending.indexes, _linked(parts, pending.indexes), strict=True):
            self.put(index, descriptor)
        head = pending.indexes[0]
        self._pending[head] = pending
        self.offer(head)
        return head

    def add_raw(self, descriptors: Sequence[Descriptor], *, head: int | None = None) -> int:
        """Offer a chain exactly as written, legal or not: `descriptors[i]` goes to index i of the table, and `head` (or 0) to
        the available ring. Only for a queue on which nothing is outstanding."""
        for i, descriptor in enumerate(descriptors):
            self.put(i, descriptor)
        head = 0 if head is None else head
        self.offer(head)
        return head

    def put(self, index: int, descriptor: Descriptor) -> None:
        """Write one entry of the descriptor table."""
        self.memory.write(self.desc + 16 * index, descriptor.pack())

    def table(self, descriptors: Sequence[Descriptor], pending: _Pending | None = None) -> int:
        """Write an indirect table; its address, as the device is told it."""
        size = 16 * len(descriptors)
        address = self.arena.take(size)
        if pending is not None:
            pending.buffers.append((address, size))
        self.memory.write(address, b"".join(d.pack() for d in descriptors))
        return self._translate(address)

    def offer(self, head: int) -> None:
        """Put `head` into the available ring and publish it."""
        self.memory.write(self.avail + 4 + 2 * (self._avail_idx % self.size), struct.pack("<H", head))
        self.publish(1)

    def publish(self, count: int) -> None:
        """Move the available index on. A store with release order: the entries are seen before the index (§2.7.13.3)."""
        self._avail_idx = (self._avail_idx + count) & 0xFFFF
        lib.avmm_store16(self._avail_host + 2, self._avail_idx)

    def kick(self, *, force: bool = False) -> bool:
        """Ring the doorbell if the device wants that (§2.7.10); whether it was rung."""
        lib.avmm_fence()  # pairs with the device's in enable_notify: it sees the chain, or we its avail_event
        old, self._kicked_idx = self._kicked_idx, self._avail_idx
        if self.event_idx:
            event = lib.avmm_load16(self._used_host + 4 + 8 * self.size)
            wanted = (self._avail_idx - event - 1) & 0xFFFF < (self._avail_idx - old) & 0xFFFF
        else:
            wanted = not lib.avmm_load16(self._used_host) & _NO_NOTIFY
        if wanted or force:
            self.kicks += 1
            self._kick_device()
        return bool(wanted or force)

    # -- taking back ---------------------------------------------------------------------------------------------------

    def poll(self) -> list[Used]:
        """All chains that came back since the last call. Raises UsageError if the device returned what it never got."""
        result = []
        while self._last_used != lib.avmm_load16(self._used_host + 2):
            entry = self.memory.read(self.used_ring + 4 + 8 * (self._last_used % self.size), 8)
            head, length = struct.unpack("<II", entry)
            self._last_used = (self._last_used + 1) & 0xFFFF
            result.append(self._reap(head, length))
        return result

    def enable_interrupts(self, after: int = 0) -> bool:
        """Ask for an interrupt at the next used chain, or with EVENT_IDX at that behind `after` further ones. False: it is there
        already, poll again (§2.7.7.1)."""
        self._set_used_event(self._last_used + after & 0xFFFF)
        lib.avmm_fence()  # pairs with the device's in needs_interrupt: we see its used.idx, or it our used_event
        ready = (lib.avmm_load16(self._used_host + 2) - self._last_used) & 0xFFFF
        return bool(ready <= (after if self.event_idx else 0))

    def disable_interrupts(self) -> None:
        """Say that none is wanted; a hint, without EVENT_IDX (with it, a used_event left behind does the same)."""
        if not self.event_idx:
            lib.avmm_store16(self._avail_host, _NO_INTERRUPT)

    async def used(self, count: int = 1, timeout: float = 10.0) -> list[Used]:
        """Wait, by interrupts alone, until `count` chains have come back. Raises TimeoutError after `timeout` seconds."""
        result = self.poll()
        async with time_limit(timeout, f"{count} chains back from the device"):
            while len(result) < count:
                self.irq.clear()
                if self.enable_interrupts():
                    await self.irq.wait()
                result += self.poll()
        return result

    # -- within --------------------------------------------------------------------------------------------------------

    def _set_used_event(self, value: int) -> None:
        if self.event_idx:
            lib.avmm_store16(self._avail_host + 4 + 2 * self.size, value)
        else:
            lib.avmm_store16(self._avail_host, 0)

    def _claim(self, count: int) -> list[int]:
        if count > len(self.free):
            raise UsageError(f"{count} descriptors wanted, {len(self.free)} are free")
        if self._shuffle is not None:
            self._shuffle.shuffle(self.free)
        return [self.free.pop() for _ in range(count)]

    def _buffer(self, pending: _Pending, size: int) -> int:
        address = self.arena.take(size)
        pending.buffers.append((address, size))
        return address

    def _reap(self, head: int, length: int) -> Used:
        pending = self._pending.pop(head, None)
        if pending is None:
            if head < self.size and head in self.free:  # a raw chain: the test knows what it was
                return Used(head, length, [])
            raise UsageError(f"the device returned head {head}, which was not outstanding")
        buffers = [self.memory.read(address, size) for address, size in pending.writable]
        for address, size in pending.buffers:
            self.arena.give(address, size)
        self.free += pending.indexes
        return Used(head, length, buffers)


def _linked(descriptors: Sequence[Descriptor], indexes: Sequence[int]) -> list[Descriptor]:
    """The same descriptors, each pointing to the next one's index."""
    last = len(descriptors) - 1
    return [
        d if i == last else Descriptor(d.address, d.length, d.flags | NEXT, indexes[i + 1])
        for i, d in enumerate(descriptors)
    ]
