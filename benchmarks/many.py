"""How fast guests are there: one after the other, many at once, over and over; the process that starts the first.

What many cost is in many_memory, how that goes with their number in many_scale, and whether something stays in many_waves.

Bare-metal guests of 4 MiB without devices, which print as soon as they run. Loop time is the processor time of the event loop's
thread, which another machine's work disturbs least. The floor is a C program that makes the same system calls (create_floor.c).
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import uvloop

from aiovmm import VM, VMConfig
from benchmarks.guest import aiovmm_program
from benchmarks.harness import Options, Result, Target, progress, run_rounds
from benchmarks.programs import program
from benchmarks.startup import process
from tests.guests import build_kernel
from tests.vm.guest import config

NEEDS_KVM = True
FLOOR, ASYNCIO = "the system calls alone", "import asyncio"
BEFORE = 5  # guests that do not count
Sample = Callable[[VMConfig, int], Awaitable[float]]


async def first_byte(what: VMConfig) -> float:
    """Seconds from nothing to what a guest prints first."""
    began = time.perf_counter()
    async with VM(what) as vm:
        await vm.start()
        await vm.serial.read(1)
        return time.perf_counter() - began


async def one_by_one(what: VMConfig, count: int) -> float:
    """Milliseconds each to the first byte; the median."""
    return 1e3 * sorted([await first_byte(what) for _ in range(count)])[count // 2]


async def loop_time(what: VMConfig, count: int) -> float:
    """Milliseconds of processor time of this thread's to create and start one; the median."""
    times = []
    for _ in range(count):
        began = time.thread_time()
        async with VM(what) as vm:
            await vm.start()
            times.append(time.thread_time() - began)
    return 1e3 * sorted(times)[count // 2]


async def creation(what: VMConfig, count: int) -> float:
    """Milliseconds to create one that is not started; the median."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        async with VM(what):
            times.append(time.perf_counter() - began)
    return 1e3 * sorted(times)[count // 2]


async def burst(what: VMConfig, count: int) -> float:
    """Milliseconds for each of so many that are started together, until all have printed."""
    return 1e3 * (await _together(what, count))[-1] / count


async def first_of(what: VMConfig, count: int) -> float:
    """Milliseconds until the first of them has."""
    return 1e3 * (await _together(what, count))[0]


async def _together(what: VMConfig, count: int) -> list[float]:
    """Seconds to each one's first byte. All live until the last has printed."""
    began, times, all_printed = time.perf_counter(), [], asyncio.Event()

    async def one() -> None:
        async with VM(what) as vm:
            await vm.start()
            await vm.serial.read(1)
            times.append(time.perf_counter() - began)
            if len(times) == count:
                all_printed.set()
            await all_printed.wait()

    await asyncio.gather(*(one() for _ in range(count)))
    return times


async def sustained(what: VMConfig, count: int) -> float:
    """So many, each ended when it has printed and the next one begun, 16 at a time: guests a second."""
    left = iter(range(count))

    async def lane() -> None:
        for _ in left:
            await first_byte(what)

    began = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(16)))
    return count / (time.perf_counter() - began)


ROWS: dict[str, tuple[Sample, tuple[int, int], str, Target]] = {
    "loop time to create and start one": (loop_time, (100, 5), "ms", Target(plus=1.0)),
    "one by one, to the first byte": (one_by_one, (100, 5), "ms", Target(plus=2.0)),
    "10 at once, each": (burst, (10, 3), "ms", Target(plus=1.3)),
    "100 at once, each": (burst, (100, 5), "ms", Target(plus=1.3)),
    "200 at once, each": (burst, (200, 5), "ms", Target(plus=1.5)),
    "1,000 at once, each": (burst, (1000, 5), "ms", Target(plus=1.5)),
    "50 at once, the first": (first_of, (50, 5), "ms", Target(plus=20.0)),
    "created and ended, 16 at a time": (sustained, (600, 20), "a second", Target(plus=600.0, most=False)),
}
"""What is measured, of how many guests (and of how many in short), and its target."""


def run(options: Options) -> Iterator[Result]:
    """All rows; each sample in a process of its own."""
    yield from _starts(options)
    if options.wants("creation"):
        row = Result("creation", "ms", "aiovmm", (FLOOR,), Target(times=3.0))
        count = options.pick(200, 5)
        ours = {"aiovmm": lambda: in_a_process("creation", count), FLOOR: lambda: floor(count)}
        yield run_rounds(row, ours, options.rounds)
    for name, (_, counts, unit, target) in ROWS.items():
        if not options.wants(name):
            continue
        row = Result(name, unit, target=target)
        for number in range(options.rounds):
            row.add("aiovmm", in_a_process(name, options.pick(*counts)))
            progress(row, number, options.rounds, "aiovmm", row.samples["aiovmm"][-1])
        yield row
    from benchmarks import many_memory, many_scale, many_waves  # which use what is here

    for part in (many_memory, many_scale, many_waves):
        yield from part.rows(options)


def _starts(options: Options) -> Iterator[Result]:
    """Whole processes, with all modules compiled, wherever that is forbidden here."""
    with tempfile.TemporaryDirectory() as compiled:
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}
        boots = ["--kernel", str(build_kernel("kernel")), "--cmdline", "w", "--memory", "4M"]
        restores = ["--restore", f"source_url=file://{compiled}/snapshot"]
        uvloop.run(save_one_that_prints(Path(compiled, "snapshot")))
        starts: dict[str, tuple[Callable[[], float], Target]] = {
            "from aiovmm import VM": (lambda: python("from aiovmm import VM", env), Target(1.0, 20.0)),
            "aiovmm run, to the first byte": (lambda: run_to_first_byte(boots, env), Target(1.0)),
            "aiovmm run --restore, to the first byte": (lambda: run_to_first_byte(restores, env), Target(1.0)),
        }
        for name, (measure, target) in starts.items():
            if options.wants(name):
                measure()
                peers = {ASYNCIO: lambda: python(ASYNCIO, env), name: measure}
                row = Result(name, "ms", name, (ASYNCIO,), target)
                yield run_rounds(row, peers, options.pick(3 * options.rounds, 1))


def python(code: str, env: Mapping[str, str]) -> float:
    """Milliseconds of a whole process."""
    return process([sys.executable, "-c", code], env)


async def save_one_that_prints(path: Path) -> None:
    """A snapshot at `path` of a guest that prints without end."""
    async with VM(config("w")) as vm:
        await vm.start()
        await vm.serial.read(1)
        await vm.snapshot(path)


def run_to_first_byte(words: Sequence[str], env: Mapping[str, str]) -> float:
    """Milliseconds from exec of `aiovmm run` to what its guest, which prints without end, prints first."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "env": env}
    began = time.perf_counter()
    with subprocess.Popen([*aiovmm_program(), "run", *words, "--serial", "tty"], **pipes) as monitor:  # type: ignore[call-overload]
        select.select([monitor.stdout], [], [], 60)
        took = time.perf_counter() - began
        said = os.read(monitor.stdout.fileno(), 1)
        monitor.kill()
    if not said:
        raise RuntimeError("the guest printed nothing")
    return 1e3 * took


def floor(count: int) -> float:
    """Milliseconds of a creation in C."""
    done = subprocess.run([program("create_floor"), str(count)], capture_output=True, text=True, check=True, timeout=60)
    return float(done.stdout.split()[0])


# -- what runs in a process of its own


def in_a_process(name: str, count: int) -> float:
    """One sample of a row, measured by this module in another process."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", __name__, name, str(count)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout))


async def main(name: str, count: int) -> None:
    """Print one sample."""
    sample = creation if name == "creation" else ROWS[name][0]
    what = config("hi")
    for _ in range(BEFORE):
        await first_byte(what)
    print(json.dumps(await sample(what, count)))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
