"""Both ends of one ring with no loop in between: the driver's simulator and the native queue that a device has."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from aiovmm.memory import AddressSpace, GuestMemory
from aiovmm.native import lib
from aiovmm.virtqueue.batch import Batch
from aiovmm.virtqueue.chain import Chain
from aiovmm.virtqueue.driver import Arena, DriverQueue
from aiovmm.virtqueue.features import RING_FEATURES
from aiovmm.virtqueue.ring import open_ring

OK = 0


@dataclass
class Failure:
    """What the native pop said of a malformed chain."""

    code: int
    head: int
    address: int
    length: int


class RingPair:
    def __init__(
        self,
        memory: GuestMemory,
        *,
        size: int = 16,
        features: int = RING_FEATURES,
        start: int = 0,
        device_memory: AddressSpace | None = None,
        seed: int | None = None,
        **driver_options: Any,
    ) -> None:
        self.memory = device_memory or memory
        self.kicked = 0
        shuffle = None if seed is None else random.Random(seed)
        arena = Arena(0x1000, memory.size - 0x1000)
        self.driver = DriverQueue(
            memory, arena, self._kick, size=size, features=features, start=start, shuffle=shuffle, **driver_options
        )
        self.config = self.driver.config()
        self.ring = open_ring(self.config, self.memory, features, self.driver.position if start else None)
        self.queue = self.ring.queue
        self.batch = Batch(size, 4 * size + 64, addresses=True)

    def _kick(self) -> None:
        self.kicked += 1

    def pop(self, most: int | None = None) -> list[Chain]:
        """All chains (or at most so many); raises AssertionError if one is malformed."""
        if most is not None:
            self.batch = Batch(most, 4 * self.config.size + 64, addresses=True)
        n = self.batch.take(self.queue, self.memory.table)
        assert n >= 0, f"malformed: {n}"
        return self.batch.unpack(self.memory)

    def pop_failure(self) -> Failure:
        n = self.batch.take(self.queue, self.memory.table)
        assert n < 0, f"{n} chains where a malformed one was expected"
        e = self.batch.error
        assert e.code == n
        return Failure(e.code, e.head, e.address, e.length)

    def push(self, chain: Chain, written: int | None = None) -> None:
        result = lib.avmm_queue_push_one(self.queue, chain.head, chain.written if written is None else written)
        assert result == OK

    def needs_interrupt(self) -> bool:
        return bool(lib.avmm_queue_needs_interrupt(self.queue))
