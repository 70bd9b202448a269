"""The range map for port I/O and memory-mapped I/O: which device answers which address.

A range may carry a `FastPage`: per byte of the range one policy byte and one shadow byte, in memory that the native run
loop reads. With it a vCPU need not wait for the event loop: a posted write goes to the exit ring and the guest runs on,
a shadow read is answered from the shadow byte. The owner of the range changes both at any time by plain stores, from the
event loop's thread. Everything else is a synchronous exit. An address in no range reads as all ones and ignores writes;
the run loop answers these itself and counts them.
"""

from __future__ import annotations

import bisect
import contextlib
import enum
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol, cast, runtime_checkable

from aiovmm.errors import UsageError
from aiovmm.runtime.dataclass import dataclass, field

__all__ = ["BatchDevice", "Bus", "BusDevice", "FastPage", "NotingDevice", "Policy", "Range", "RunDevice", "Space"]


class Space(enum.IntEnum):
    """The two address spaces a vCPU can leave the guest through."""

    PIO = 0
    MMIO = 1


class Policy:
    """What the run loop may do with one byte of a range without waiting. An access wider than a byte needs it of all."""

    SYNC = 0
    SHADOW_READ = 1  # answer from the shadow byte
    NOTE_READ = 2  # with SHADOW_READ: also post the read, so that the device learns of it
    POSTED_WRITE = 4  # post the write and go on
    LATCH_WRITE = 8  # with POSTED_WRITE: store the written byte into the shadow at once
    IGNORE_WRITE = 16  # drop the write without an exit to the loop
    POSTED_DWORD = 32
    """Post a write of exactly four bytes that begins here, whatever the policy of its other bytes; with IGNORE_WRITE it is
    latched, as LATCH_WRITE says, and not posted."""
    LAZY_WRITE = 64  # with a posted write: nobody waits for what it does, so the loop may learn of it some ms later
    DROP_SAME = 128  # with SHADOW_READ: a write of what the shadow shows changes nothing, so drop it


class FastPage:
    """Policy and shadow bytes of a range; `size` is in bytes and equals the range's.

    Native code reads these very bytes from the moment that the range is published, so neither array can be put in the place of
    another (tests/native/test_owners.py looks) or change its length. `shadow` may be a device's own registers, `policy` other
    pages' as well, where it never changes, and must be `bytes`, which nobody can change, if the shadow ends before the page: all
    accesses behind it wait for the loop. Raises UsageError otherwise.

    With `ecam`, the address of one, the range is that of PCI's configuration mechanism #1: an access to its data, bytes 4 to 7,
    is one to the ECAM's page that its address register, bytes 0 to 3 of the shadow, names, by that page's policy.
    """

    policy: bytearray  # or bytes
    ecam = 0

    def __init__(self, size: int, shadow: bytearray | None = None, policy: bytearray | bytes | None = None) -> None:
        if shadow is not None and len(shadow) != size and not _ends_with(shadow, policy, size):
            raise UsageError(f"a fast page of {size} bytes cannot show {len(shadow)}")
        self.size = size
        self.policy = bytearray(size) if policy is None else cast("bytearray", policy)
        self.shadow = bytearray(size) if shadow is None else shadow


def _ends_with(shadow: bytearray, policy: bytearray | bytes | None, size: int) -> bool:
    """Whether no access behind the shadow will ever be answered from it."""
    if not isinstance(policy, bytes) or not len(shadow) < size == len(policy):
        return False
    return policy.endswith(bytes(size - len(shadow)))


class BusDevice(Protocol):
    """Registers behind a range. Called from the event loop while a vCPU waits, so it never blocks."""

    def read(self, offset: int, size: int) -> bytes | Awaitable[bytes]:
        """`size` bytes (1, 2, 4 or 8) at `offset` from the range's start, little-endian. If an awaitable is returned, the guest's
        instruction completes when it is done."""

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """Store `data`. If an awaitable is returned, the guest's instruction completes when it is done."""


@runtime_checkable
class BatchDevice(Protocol):
    """A BusDevice that gathers what posted writes brought and acts on it once a drain."""

    def end_of_batch(self) -> None:
        """Every exit that was waiting has been given out. Called once at the end of a drain that touched the device."""


@runtime_checkable
class RunDevice(Protocol):
    """A BusDevice that takes a run of posted writes to one address in one call."""

    def write_many(self, offset: int, data: bytes, size: int) -> None:
        """As `write(offset, value)` for each value of `size` bytes (1, 2 or 4) of `data` in turn."""


@runtime_checkable
class NotingDevice(Protocol):
    """A BusDevice with NOTE_READ bytes, which must know what the guest was shown: the shadow may have changed since."""

    def note_read(self, offset: int, data: bytes) -> None:
        """The guest read at `offset` and was answered `data` from the shadow. In order with the vCPU's other exits."""


@dataclass(frozen=True, eq=False)
class Range:
    """`size` addresses from `base` in `space`, answered by `device`."""

    space: Space
    base: int
    size: int
    device: BusDevice
    name: str
    fast: FastPage | None = None

    @property
    def end(self) -> int:
        """The first address after the range."""
        return self.base + self.size


@dataclass()
class _Map:
    bases: list[int] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)


class Bus:
    """Both address spaces of one VM. `on_change` (if set) is called after every change, to publish the ranges to native code."""

    def __init__(self) -> None:
        self._maps = (_Map(), _Map())
        self.on_change: Callable[[], None] | None = None
        self._batches = 0
        self._changes = 0

    def add(self, rng: Range) -> Range:
        """Claim a range. Raises UsageError if it is empty, or overlaps one that is there already, by name."""
        if rng.size <= 0 or rng.base < 0:
            raise UsageError(f"bus range {rng.name!r} is empty or negative: {rng.base:#x} + {rng.size:#x}")
        if rng.fast is not None and rng.fast.size != rng.size:
            raise UsageError(f"bus range {rng.name!r}: its fast page has {rng.fast.size} bytes, not {rng.size}")
        m = self._maps[rng.space]
        i = bisect.bisect_right(m.bases, rng.base)
        other = self._overlap(m.ranges, i, rng)
        if other is not None:
            raise UsageError(
                f"bus range {rng.name!r} [{rng.base:#x}, {rng.end:#x}) overlaps "
                f"{other.name!r} [{other.base:#x}, {other.end:#x})"
            )
        m.bases.insert(i, rng.base)
        m.ranges.insert(i, rng)
        self._changed()
        return rng

    def remove(self, rng: Range) -> None:
        """Give a range back. Raises UsageError if it is not on the bus."""
        m = self._maps[rng.space]
        i = bisect.bisect_left(m.bases, rng.base)
        if i == len(m.ranges) or m.ranges[i] is not rng:
            raise UsageError(f"bus range {rng.name!r} is not on the bus")
        del m.bases[i], m.ranges[i]
        self._changed()

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Changes within the block are published together, at its end: publishing costs time for every range there is."""
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            self._publish()

    def find(self, space: Space, address: int, size: int = 1) -> Range | None:
        """The range that holds all of [address, address + size), or None."""
        m = self._maps[space]
        i = bisect.bisect_right(m.bases, address) - 1
        if i < 0:
            return None
        rng = m.ranges[i]
        return rng if address + size <= rng.end else None

    def ranges(self) -> list[Range]:
        """All ranges, port I/O first, each space sorted by base."""
        return [r for m in self._maps for r in m.ranges]

    def read(self, space: Space, address: int, size: int) -> bytes | Awaitable[bytes]:
        """What the guest reads: the device's bytes, or all ones where there is none. See BusDevice.read for the result."""
        rng = self.find(space, address, size)
        if rng is None:
            return b"\xff" * size
        return rng.device.read(address - rng.base, size)

    def write(self, space: Space, address: int, data: bytes) -> Awaitable[None] | None:
        """Hand a write to its device; dropped where there is none. See BusDevice.write for the result."""
        rng = self.find(space, address, len(data))
        if rng is None:
            return None
        return rng.device.write(address - rng.base, data)

    @staticmethod
    def _overlap(ranges: list[Range], i: int, rng: Range) -> Range | None:
        """The one that is in the way of `rng`, which would stand at `i` in the order of bases."""
        if i and (before := ranges[i - 1]).base + before.size > rng.base:
            return before
        if i < len(ranges) and (after := ranges[i]).base < rng.base + rng.size:
            return after
        return None

    def _changed(self) -> None:
        self._changes += 1
        if not self._batches:
            self._publish()

    def _publish(self) -> None:
        if self._batches or not self._changes:
            return
        self._changes = 0
        if self.on_change is not None:
            self.on_change()
