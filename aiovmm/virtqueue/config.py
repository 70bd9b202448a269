"""What the driver tells a transport about one queue, before the queue is live.

A transport fills a `QueueConfig` from register writes, as they come and unchecked; `Queue.activate` checks it once.
"""

from __future__ import annotations

from typing import Any

from aiovmm.errors import ChainError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["NO_VECTOR", "QUEUE_SIZE_MAX", "QueueConfig", "QueueCounters", "QueuePosition"]

QUEUE_SIZE_MAX = 32768  # VIRTIO 1.2 §2.7
NO_VECTOR = 0xFFFF  # VIRTIO_MSI_NO_VECTOR, §4.1.5.1.2


@dataclass(frozen=True)
class QueuePosition:
    """Where a stopped queue stands: the next ring positions, both modulo 65536. Plain data for a snapshot."""

    last_avail: int = 0
    used_idx: int = 0


@dataclass(frozen=True)
class QueueCounters:
    """Chains taken and returned, kicks seen and interrupts raised. They add up."""

    popped: int = 0
    pushed: int = 0
    kicks: int = 0
    interrupts: int = 0

    def __add__(self, other: QueueCounters) -> QueueCounters:
        return QueueCounters(
            self.popped + other.popped,
            self.pushed + other.pushed,
            self.kicks + other.kicks,
            self.interrupts + other.interrupts,
        )


@dataclass()
class QueueConfig:
    """One queue's registers. `size` counts descriptors; `desc`, `avail`, `used` are guest addresses (IOVAs behind an
    IOMMU); `vector` is the transport's interrupt vector for it. `inflight` is a `struct avmm_inflight *`, a record of requests in
    flight that outlives this process (vhost-user's, native/src/ring.h), or None; a queue with one resumes by it."""

    max_size: int
    size: int = -1  # -1: max_size
    desc: int = 0
    avail: int = 0
    used: int = 0
    ready: bool = False
    vector: int = NO_VECTOR
    inflight: Any = None

    def __post_init__(self) -> None:
        if self.size < 0:
            self.size = self.max_size

    def reset(self) -> None:
        """Back to what a device shows after reset: the largest size, disabled, no vector."""
        self.size = self.max_size
        self.desc = self.avail = self.used = 0
        self.ready = False
        self.vector = NO_VECTOR
        self.inflight = None

    def check(self) -> None:
        """Raise ChainError unless the size and the alignments are those of VIRTIO 1.2 §2.7."""
        if not 0 < self.size <= min(self.max_size, QUEUE_SIZE_MAX) or self.size & (self.size - 1):
            raise ChainError(f"queue size {self.size} is not a power of two up to {self.max_size}")
        for name, address, alignment in (("desc", self.desc, 16), ("avail", self.avail, 2), ("used", self.used, 4)):
            if address % alignment:
                raise ChainError(f"{name} ring at {address:#x} is not aligned to {alignment} bytes")

    @property
    def parts(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(address, bytes) of the descriptor table, the available ring and the used ring (§2.7)."""
        return (self.desc, 16 * self.size), (self.avail, 6 + 2 * self.size), (self.used, 6 + 8 * self.size)
