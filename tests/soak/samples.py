"""What a process holds, minute by minute, and whether that grows. Pure but for `now`."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aiovmm.runtime import crew
from tests.host_threads import of_vcpus

__all__ = ["Sample", "grown"]

_MIB = 1 << 20
_SLACK = {"descriptors": 12, "threads": 4, "tasks": 12, "resident": 24 * _MIB}
"""What one moment may differ from another by without anything being left behind: guests come and go."""


@dataclass(frozen=True)
class Sample:
    """Bytes resident, counts, and the longest time in seconds that the loop was late by since the sample before."""

    resident: int
    descriptors: int
    threads: int
    tasks: int
    late: float

    @classmethod
    def now(cls, late: float) -> Sample:
        """Of this process."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        threads = len(of_vcpus()) + sum(not thread.name.startswith(crew.NAME) for thread in threading.enumerate())
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE"),
            len(os.listdir("/proc/self/fd")),
            threads,
            len(asyncio.all_tasks()),
            late,
        )


def grown(samples: Sequence[Sample]) -> list[str]:
    """What was more in the last quarter than in the second, beyond what a moment differs from another by: at most moments, and at
    the lowest, since what is left behind is there at every one."""
    quarter = len(samples) // 4
    if quarter == 0:
        return []
    before, after = samples[quarter : 2 * quarter], samples[-quarter:]
    found = []
    for name, slack in _SLACK.items():
        old, new = ([getattr(sample, name) for sample in part] for part in (before, after))
        if all(of(new) > of(old) + slack for of in (statistics.median, min)):
            found.append(f"{name}: {statistics.median(old):.0f}, then {statistics.median(new):.0f}")
    return found
