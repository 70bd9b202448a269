"""Where PCI segments lie in the address space: plain data that the VM and its firmware tables both use.

Segment n has bus 0 only, its ECAM n MiB after the first one's, and an aligned share of each memory window, all
equal unless weights say otherwise. There is one
host bridge, one `_SEG` and one MCFG entry a segment.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

from aiovmm.errors import UsageError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["ECAM_SIZE", "SegmentPlan", "Window", "plan_segments"]

ECAM_SIZE = 1 << 20  # one bus: 32 devices of 8 functions of 4 KiB
MAX_SEGMENTS = 256
_SHARE_ALIGNMENT = 1 << 20


@dataclass(frozen=True)
class Window:
    """`size` addresses from `base` that a host bridge forwards to its bus."""

    base: int
    size: int

    @property
    def end(self) -> int:
        """The first address after the window."""
        return self.base + self.size

    def holds(self, base: int, size: int) -> bool:
        """Whether all of [base, base + size) lies inside."""
        return self.base <= base and base + size <= self.end


@dataclass(frozen=True)
class SegmentPlan:
    """One PCI segment group: its number, ECAM, bus range (inclusive) and memory windows. `io` is None: no port windows."""

    number: int
    ecam_base: int
    mmio32: Window
    mmio64: Window
    ecam_size: int = ECAM_SIZE
    bus_start: int = 0
    bus_end: int = 0
    io: Window | None = None

    @property
    def windows(self) -> Sequence[Window]:
        """The memory windows."""
        return (self.mmio32, self.mmio64)


def plan_segments(
    count: int, ecam: int, mmio32: Window, mmio64: Window, weights: Sequence[tuple[int, int]] = ()
) -> list[SegmentPlan]:
    """Divide both windows among `count` segments (1..256), whose configuration space begins at `ecam`: equally, or by `weights`,
    how many shares of each window a segment has. Raises UsageError if there is not 1 MiB for a share."""
    if not 1 <= count <= MAX_SEGMENTS:
        raise UsageError(f"{count} PCI segments: there can be 1 to {MAX_SEGMENTS}")
    return list(_planned(count, ecam, mmio32, mmio64, tuple(weights)))


@lru_cache(64)
def _planned(
    count: int, ecam: int, mmio32: Window, mmio64: Window, weights: tuple[tuple[int, int], ...]
) -> tuple[SegmentPlan, ...]:
    """The same for all machines that are alike."""
    shares = weights or ((1, 1),) * count
    low = _divided(mmio32, [share for share, _ in shares])
    high = _divided(mmio64, [share for _, share in shares])
    return tuple(SegmentPlan(n, ecam + n * ECAM_SIZE, low[n], high[n]) for n in range(count))


def _divided(window: Window, shares: Sequence[int]) -> list[Window]:
    """A share's alignment is as large as its size allows up to 4 GiB, so that large BARs find a place in it."""
    count, alignment = sum(shares), _SHARE_ALIGNMENT
    while alignment < 1 << 32 and window.size // count >= 64 * alignment:
        alignment *= 2
    base = -(-window.base // alignment) * alignment
    size = (window.end - base) // count // alignment * alignment
    if size < _SHARE_ALIGNMENT:
        raise UsageError(f"{window.size:#x} bytes at {window.base:#x} are too few for {count} shares of PCI segments")
    starts = itertools.accumulate(shares, initial=0)
    return [Window(base + start * size, share * size) for start, share in zip(starts, shares, strict=False)]
