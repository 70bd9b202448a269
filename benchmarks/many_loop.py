"""One event loop and all its guests at once: how many echoes a second it gives them together, and how late it is for the program
when all print.

Bare-metal guests of 4 MiB that echo their serial port by interrupts. The program's own part is in it: to write to a console and
to read it, in a task for each guest. Beside the rate stands what an echo costs of a processor, and how long the loop's thread
waited for one, which is the host's scheduler's doing and other programs'.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from aiovmm import VM
from benchmarks.harness import Options, Result, Target, progress
from tests.vm.guest import config

NEEDS_KVM = True
AT_ONCE = 16  # guests that are started together, or written to in one turn of the loop
LINE = b"0123456789abcde\n"  # as much as the port's FIFO takes
ROWS = {
    "echoes a second": ("", Target(plus=40_000.0, most=False)),
    "processor time an echo": ("us", Target(plus=25.0)),
    "the loop waits for a processor": ("% of the time", None),
    "all print at once: the loop late, 99 of 100": ("ms", Target(plus=10.0)),
    "all print at once: the loop late, at most": ("ms", Target(plus=50.0)),
}


def run(options: Options) -> Iterator[Result]:
    """Five rows for each number of guests."""
    for count in options.pick((10, 100, 1000), (3,)):
        name = f"{count} guests"
        if not options.wants(name):
            continue
        rows = {what: Result(f"{name}: {what}", unit, target=target) for what, (unit, target) in ROWS.items()}
        for number in range(options.pick(min(options.rounds, 3), 1)):
            measured = in_a_process(count, options.pick(2.0, 0.1))
            for what, row in rows.items():
                row.add("aiovmm", measured[what])
            progress(rows["echoes a second"], number, options.rounds, "aiovmm", measured["echoes a second"])
        yield from rows.values()


def in_a_process(count: int, seconds: float) -> dict[str, float]:
    """All figures, measured by this module in another process."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", __name__, str(count), str(seconds)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{count} guests: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


# -- what runs in a process of its own


def processor() -> tuple[float, float]:
    """Seconds that this thread has run, and waited for a processor (/proc/PID/schedstat)."""
    ran, waited, _ = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


async def started(stack: AsyncExitStack, count: int) -> list[VM]:
    """So many that run."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> VM:
        async with room:
            vm = await stack.enter_async_context(VM(config("l", name=f"guest{number}")))
            await vm.start()
            return vm

    return await asyncio.gather(*map(one, range(count)))


async def echoing(vms: list[VM], seconds: float) -> dict[str, float]:
    """Each guest is written a byte, and another one when that has come back."""
    done, end = 0, time.perf_counter() + seconds

    async def one(vm: VM) -> None:
        nonlocal done
        while time.perf_counter() < end:
            vm.serial.write(b"a")
            await vm.serial.readexactly(1)
            done += 1

    began, (ran, waited) = time.perf_counter(), processor()
    await asyncio.gather(*map(one, vms))
    took, (ran_then, waited_then) = time.perf_counter() - began, processor()
    return {
        "echoes a second": done / took,
        "processor time an echo": 1e6 * (ran_then - ran) / done,
        "the loop waits for a processor": 100 * (waited_then - waited) / took,
    }


async def late_while(work: asyncio.Task[None]) -> list[float]:
    """Seconds, sorted, that the loop is late for a task that wants it back at once and then again in a millisecond."""
    times = []
    while not work.done():
        began = time.perf_counter()
        await asyncio.sleep(0)
        times.append(time.perf_counter() - began)
        await asyncio.sleep(0.001)
    return sorted(times)


async def printing(vms: list[VM], lines: int) -> None:
    """All print so many lines, as fast as they may."""

    async def one(vm: VM) -> None:
        await vm.serial.readexactly(lines * len(LINE))

    async with asyncio.TaskGroup() as group:
        for vm in vms:
            group.create_task(one(vm))
        for _ in range(lines):
            for first in range(0, len(vms), AT_ONCE):
                for vm in vms[first : first + AT_ONCE]:
                    vm.serial.write(LINE)
                await asyncio.sleep(0)


async def main(count: int, seconds: float) -> None:
    """Print all figures as JSON."""
    async with AsyncExitStack() as stack:
        vms = await started(stack, count)
        figures = await echoing(vms, seconds)
        late = await late_while(asyncio.create_task(printing(vms, 4)))
        what = "all print at once: the loop late"
        figures |= {f"{what}, 99 of 100": 1e3 * late[(len(late) - 1) * 99 // 100], f"{what}, at most": 1e3 * late[-1]}
        print(json.dumps(figures))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
