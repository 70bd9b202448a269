"""What a disk has done, and how long it took."""

from __future__ import annotations

from aiovmm.runtime.dataclass import dataclass

__all__ = ["BlkCounters", "Latency"]


@dataclass(frozen=True)
class Latency:
    """Of `count` requests, in seconds: from the chain that was taken to its return. They add up."""

    count: int = 0
    total: float = 0.0
    min: float = 0.0
    max: float = 0.0

    @property
    def mean(self) -> float:
        """Seconds; 0 of no request."""
        return self.total / self.count if self.count else 0.0

    def __add__(self, other: Latency) -> Latency:
        if not self.count or not other.count:
            return self if self.count else other
        return Latency(
            self.count + other.count, self.total + other.total, min(self.min, other.min), max(self.max, other.max)
        )


@dataclass(frozen=True)
class BlkCounters:
    """Requests by kind, those that failed among them, and bytes asked for. They add up."""

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    others: int = 0
    errors: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    read_latency: Latency = Latency()
    write_latency: Latency = Latency()

    def __add__(self, other: BlkCounters) -> BlkCounters:
        mine, theirs = vars(self), vars(other)
        return BlkCounters(**{name: value + theirs[name] for name, value in mine.items()})
