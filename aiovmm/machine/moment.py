"""When a guest was saved, by the host's clocks, and how long ago that is.

Time goes on for a guest while it is in a snapshot, as it does while it is paused, so that its wall clock is right. How much has
passed the host's monotonic clock says, as long as the host has not been booted anew, else its wall clock.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Self

from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["Moment"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LONGEST = 1 << 62  # ns


@dataclass(frozen=True)
class Moment:
    """`boot_id` names the host's boot; nothing where it cannot be told."""

    boot_id: str
    boottime_ns: int
    realtime_ns: int

    @classmethod
    def now(cls) -> Self:
        """The present one."""
        return cls(_boot_id(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """From what `save` gave, among other fields. Raises SnapshotError."""
        boot_id = fields.text("boot_id")
        return cls(boot_id, fields.number("boottime_ns", 0, _LONGEST), fields.number("realtime_ns", 0, _LONGEST))

    def save(self) -> State:
        """Its fields."""
        return {"boot_id": self.boot_id, "boottime_ns": self.boottime_ns, "realtime_ns": self.realtime_ns}

    def passed_ns(self) -> int:
        """Nanoseconds since then; none where a clock was set back."""
        now = self.now()
        if self.boot_id and self.boot_id == now.boot_id:
            return max(0, now.boottime_ns - self.boottime_ns)
        return max(0, now.realtime_ns - self.realtime_ns)


@cache
def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
