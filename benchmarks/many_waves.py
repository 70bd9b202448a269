"""Ten thousand guests that come and go in waves, and what the process has more in the second half of them.

Bare-metal guests of 2 MiB without devices: made, started, ended once they have printed. Resident memory, descriptors and threads
are looked at after each wave, when all of it has gone; what is compared is the most of the last quarter and of the second.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from aiovmm.runtime import crew
from benchmarks.harness import Options, Result, Target
from benchmarks.many import first_byte
from benchmarks.many_memory import field, open_files, small
from tests.vm.guest import config

AT_ONCE = 100
ROWS = {
    "resident memory, more in the second half": ("MiB", Target(plus=2.0)),
    "descriptors, more in the second half": ("", Target(plus=0.0)),
    "threads, more in the second half": ("", Target(plus=2.0)),
    "made and destroyed": ("a second", Target(plus=600.0, most=False)),
}


def rows(options: Options) -> Iterator[Result]:
    """One run, whatever the rounds."""
    waves = options.pick(100, 4)
    name = f"{waves * AT_ONCE:,} guests in waves of {AT_ONCE}"
    if not options.wants(name):
        return
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", __name__, str(waves)]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, timeout=900)
    for what, value in json.loads(done.stdout).items():
        unit, target = ROWS[what]
        row = Result(f"{name}: {what}", unit, target=target)
        row.add("aiovmm", value)
        yield row


async def measure(waves: int) -> dict[str, float]:
    """Keys as in ROWS."""
    seen: list[tuple[float, int, int]] = []
    began = time.perf_counter()
    for _ in range(waves):
        await asyncio.gather(*(first_byte(small(config("hi", name=f"guest{n}"))) for n in range(AT_ONCE)))
        gc.collect()
        waiting = sum(thread.name == crew.NAME for thread in threading.enumerate())  # for work, and they end without
        threads = len(os.listdir("/proc/self/task")) - waiting
        seen.append((field("/proc/self/status", "VmRSS") / 1024, open_files(), threads))
    took = time.perf_counter() - began
    quarter = waves // 4
    second, last = seen[quarter : 2 * quarter], seen[-quarter:]
    more = [
        max(values) - max(before)
        for values, before in zip(zip(*last, strict=True), zip(*second, strict=True), strict=True)
    ]
    return dict(zip(ROWS, [*more, waves * AT_ONCE / took], strict=True))


if __name__ == "__main__":
    print(json.dumps(uvloop.run(measure(int(sys.argv[1])))))
