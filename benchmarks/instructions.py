"""Instructions, counted by valgrind: of a request through each device, and of starting up. They repeat, so a test asserts them.

A request's are those from the kick to the interrupt without the driver's simulator, `DEPTH` requests at a time. Those of
starting up are a whole process's, less `python -c pass`. `device_cost` and `startup` measure the same in time; these say what a
change costs on a busy machine too. A limit is what was counted with CPython 3.11 and a fifth more.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvloop

from aiovmm.virtqueue.driver import DriverQueue
from benchmarks.device_loads import LOADS
from benchmarks.guest import aiovmm_program
from benchmarks.harness import Options, Result, Target

DEPTH = 32
WARM = 5  # shots before the ones that count
SHOTS = 10
MARK = "getppid"  # nobody else calls it; callgrind begins a new count there
RUN = "aiovmm run, to a kernel that is not there"
LIMITS = {"rng read": 2.4, "console output": 2.5, "console input": 1.4, "vsock send": 3.8, "vsock receive": 5.0}
"""Thousands of instructions a request. Of blk the kernel decides how often it looks for completions, and net needs root."""
STARTS = {"import aiovmm": 16.0, "from aiovmm import VM": 260.0, "aiovmm run --help": 192.0, RUN: 340.0}
"""Millions of instructions. The help has a line, and click an object, for each option."""
_TOTAL = re.compile(r"^totals: (\d+)", re.MULTILINE)


def run(options: Options) -> Iterator[Result]:
    """A row for each load, and for each way to start."""
    loads = [name for name in LIMITS if options.wants(name)]
    if loads:
        for name, counts in zip(loads, _device_counts(loads), strict=True):
            result = Result(f"{name}, depth {DEPTH}", "k instructions", target=Target(plus=LIMITS[name]))
            result.samples["aiovmm"] = counts
            yield result
    starts = [name for name in STARTS if options.wants(name)]
    base = _whole([sys.executable, "-c", "pass"]) if starts else 0
    for name in starts:
        result = Result(name, "M instructions", target=Target(plus=STARTS[name]))
        result.add("aiovmm", (_whole(_start(name)) - base) / 1e6)
        yield result


def _whole(command: Sequence[str]) -> int:
    return sum(_count(command)[0])


def _start(name: str) -> Sequence[str]:
    if name == RUN:
        words = ["aiovmm", "run", "--kernel", "/nowhere/vmlinux", "--memory", "256M", "--serial", "tty"]
        code = f"import sys; sys.argv = {words}; from aiovmm.cli import main\ntry: main()\nexcept SystemExit: pass"
        return [sys.executable, "-c", code]
    if name == "aiovmm run --help":
        return [*map(str, aiovmm_program()), "run", "--help"]
    return [sys.executable, "-c", name]


def _device_counts(loads: Sequence[str]) -> list[list[float]]:
    """Of each load, the thousands of instructions a request in each shot."""
    counts, said = _count([sys.executable, "-m", __name__, *loads])
    parts = iter(counts[1::2])  # the others are of what lies between
    shots = [sum(next(parts) for _ in range(int(waits))) / DEPTH / 1e3 for waits in said.split()]
    return [shots[i : i + SHOTS] for i in range(0, len(shots), SHOTS)]


def _count(command: Sequence[str]) -> tuple[list[int], str]:
    """Instructions of a command to the first mark, then to the second, and so on; what it printed. Raises RuntimeError."""
    if shutil.which("valgrind") is None:
        raise RuntimeError("instructions are counted by valgrind: install it (Debian's package valgrind)")
    with tempfile.TemporaryDirectory() as folder:
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", f"--dump-before={MARK}"]
        env = {
            **os.environ,
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": f"{folder}/pyc",
        }
        subprocess.run(
            command, env=env, capture_output=True, check=False
        )  # what is not compiled yet is none of its costs
        done = subprocess.run([*tool, *command], env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} under valgrind: {done.stderr[-1000:]}")
        files = [Path(folder, "out"), *Path(folder).glob("out.*")]
        dumps = sorted((file for file in files if file.exists()), key=_order)
        return [int(count) for file in dumps for count in _TOTAL.findall(file.read_text())], done.stdout


def _order(file: Path) -> float:
    """Dumps are numbered; the one at the end is not."""
    return int(file.suffix[1:]) if file.suffix else float("inf")


# -- what runs under valgrind


async def _shoot(name: str, folder: Path) -> None:
    async with LOADS[name](folder) as shot:
        for number in range(WARM + SHOTS):
            queue, begin = await shot(DEPTH)
            gc.collect()
            waits = await _timed(queue, begin, os.getppid if number >= WARM else int)
            if number >= WARM:
                print(waits)


async def _timed(queue: DriverQueue, begin: Callable[[], object], mark: Callable[[], object]) -> int:
    """Marks before and after each time that the device has work; how often it had."""
    waits, left = 0, DEPTH
    while left > 0:
        mark()
        if not waits:
            begin()
        queue.irq.clear()
        if queue.enable_interrupts():
            await queue.irq.wait()
        mark()
        waits += 1
        left -= len(queue.poll())
    return waits


def main(loads: Sequence[str]) -> None:
    """The loads one after the other, each shot between two marks."""
    gc.disable()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for name in loads:
            uvloop.run(_shoot(name, Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
