"""The whole of it: places of guests, a clock that sees how late the loop is, and samples."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

from tests.soak.guests import ROLES, Guest
from tests.soak.samples import Sample, grown

__all__ = ["soak"]

_TICK = 0.005
_SAMPLES = 60  # of a run


async def soak(place: Path, seconds: float, seed: int) -> list[str]:
    """For so long; what grew."""
    done: Counter[str] = Counter()
    over = asyncio.Event()
    guests = [Guest(role, place / str(number), seed + number, done) for number, role in enumerate(ROLES)]
    samples: list[Sample] = []
    late = [0.0]
    try:
        async with asyncio.TaskGroup() as group:
            for guest in guests:
                group.create_task(guest.live(over), name=f"place of {guest.role}")
            clock = group.create_task(_clock(late))
            began = time.monotonic()
            while time.monotonic() < began + seconds:
                await asyncio.sleep(seconds / _SAMPLES)
                samples.append(Sample.now(late[0]))
                late[0] = 0.0
                _show(time.monotonic() - began, samples[-1], done)
            over.set()
            clock.cancel()
    finally:
        over.set()
    return grown(samples)


async def _clock(late: list[float]) -> None:
    while True:
        due = time.monotonic() + _TICK
        await asyncio.sleep(_TICK)
        late[0] = max(late[0], time.monotonic() - due)


def _show(seconds: float, sample: Sample, done: Counter[str]) -> None:
    deeds = ", ".join(f"{count} {name}" for name, count in done.most_common())
    print(
        f"{seconds:6.0f} s: {sample.resident >> 20} MiB, {sample.descriptors} descriptors, {sample.threads} threads, "
        f"{sample.tasks} tasks, {1000 * sample.late:.0f} ms late at most; {deeds}",
        flush=True,
    )
