"""What the driver tells a transport about one queue, before the queue is live.

A transport fills a `QueueConfig` from register writes, as they come and unchecked; `Queue.activate` checks it once.
"""

from __future__ import annotations

from typing import Any

from aiovmm.errors import ChainError, SnapshotError
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["NO_VECTOR", "QUEUE_SIZE_MAX", "QueueConfig", "QueueCounters", "QueuePosition"]

QUEUE_SIZE_MAX = 32768  # VIRTIO 1.2 §2.7
NO_VECTOR = 0xFFFF  # VIRTIO_MSI_NO_VECTOR, §4.1.5.1.2


@dataclass(frozen=True)
class QueuePosition:
    """Where a stopped queue stands: the next ring positions, both modulo 65536, and the heads of chains that were taken before
    `last_avail` and are to be taken again, for nobody has returned them."""

    last_avail: int = 0
    used_idx: int = 0
    again: tuple[int, ...] = ()
    told: bool = False
    """The driver was interrupted for all that was returned, if it wanted that; else it is once more."""

    @property
    def in_flight(self) -> int:
        """Chains taken and not returned, those of `again` among them."""
        return self.last_avail - self.used_idx & 0xFFFF

    def save(self) -> State:
        """As plain data."""
        positions = {"last_avail": self.last_avail, "used_idx": self.used_idx}
        return {**positions, "again": list(self.again), "told": self.told}

    @classmethod
    def read(cls, fields: Fields, size: int) -> QueuePosition:
        """What `save` gave, of a queue of `size` entries. Raises SnapshotError."""
        avail, used = fields.number("last_avail", 0, 0xFFFF), fields.number("used_idx", 0, 0xFFFF)
        again = tuple(fields.numbers("again", low=0, high=max(size - 1, 0)))
        position = cls(avail, used, again, fields.flag("told"))
        fields.end()
        if not len(position.again) <= position.in_flight <= size:
            raise SnapshotError(
                f"{fields.where}: of {position.in_flight} chains in flight {len(position.again)} come again, in a queue of {size}"
            )
        return position


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

    def become(self, other: QueueConfig) -> None:
        """All registers as those of another, which may be as large."""
        self.size, self.desc, self.avail, self.used = other.size, other.desc, other.avail, other.used
        self.ready, self.vector, self.inflight = other.ready, other.vector, other.inflight

    def save(self) -> State:
        """The registers as plain data, and how large the queue may be."""
        return {
            "max_size": self.max_size,
            "size": self.size,
            "desc": self.desc,
            "avail": self.avail,
            "used": self.used,
            "ready": self.ready,
            "vector": self.vector,
        }

    @classmethod
    def read(cls, fields: Fields, max_size: int, vectors: int) -> QueueConfig:
        """What `save` gave, of a queue of at most `max_size` entries of a device with `vectors` vectors. Raises SnapshotError."""
        if (saved := fields.number("max_size")) != max_size:
            raise SnapshotError(f"{fields.where} had {saved} entries at most where it was saved, and {max_size} here")
        config = cls(
            max_size,
            size=fields.number("size", 0, 0xFFFF),
            desc=fields.number("desc"),
            avail=fields.number("avail"),
            used=fields.number("used"),
            ready=fields.flag("ready"),
            vector=fields.number("vector", 0, NO_VECTOR),
        )
        fields.end()
        if config.vector >= vectors and config.vector != NO_VECTOR:
            raise SnapshotError(f"{fields.where} has vector {config.vector} of {vectors}")
        return config

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
