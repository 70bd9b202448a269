"""What becomes of one event loop as guests become more: memory and start of each, how late the loop is, what all together do.

Bare-metal guests of 2 MiB without devices, so many in a process of its own. They start together and print; then each is sent a
byte, all at once, and sends it back; then each makes exits that wait for the loop, without end. Of 5,000 the last is left out.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import uvloop

from aiovmm import VM
from benchmarks.harness import Options, Result, Target, progress
from benchmarks.many_memory import memory, small
from tests.vm.guest import config, counter

COUNTS = 1, 10, 100, 1000, 5000
FLOODING = 1000  # no more make exits without end
SECONDS = 2.0  # that they do
ROWS: dict[str, tuple[str, Target | None]] = {
    "memory of each": ("KiB", Target(plus=320.0)),
    "started together, each": ("ms", Target(plus=1.5)),
    "that answered": ("%", Target(plus=100.0, most=False)),
    "answers": ("a second", None),
    "the loop late while all answer, p99": ("ms", Target(plus=10.0)),
    "exits that wait, all together": ("a second", None),
    "the loop late while all make exits, p99": ("ms", Target(plus=10.0)),
    "stopped together, all": ("s", Target(plus=1.0)),
}


def rows(options: Options) -> Iterator[Result]:
    """For each number of guests those that are measured of it, called `N guests: what`."""
    for count in options.pick(COUNTS, (1, 5)):
        found: dict[str, Result] = {}
        if not options.wants(f"{count:,} guests"):
            continue
        for number in range(options.pick(min(options.rounds, 3), 1)):
            for what, value in in_a_process(count, options.pick(SECONDS, 0.1)).items():
                unit, target = ROWS[what]
                row = found.setdefault(what, Result(f"{count:,} guests: {what}", unit, target=target))
                row.add("aiovmm", value)
                progress(row, number, options.rounds, "aiovmm", value)
        yield from found.values()


def in_a_process(count: int, seconds: float) -> dict[str, float]:
    """What `measure` gives there."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", __name__, str(count), str(seconds)]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, timeout=600)
    return {str(what): float(value) for what, value in json.loads(done.stdout).items()}


async def measure(count: int, seconds: float) -> dict[str, float]:
    """Keys as in ROWS."""
    async with AsyncExitStack() as stack:
        await alive(stack, "hl", -1)  # what the process has once
        gc.collect()
        before, began = memory(), time.perf_counter()
        vms = await asyncio.gather(*(alive(stack, "hl", number) for number in range(count)))
        figures = {"started together, each": 1e3 * (time.perf_counter() - began) / count}
        gc.collect()
        figures["memory of each"] = (sum(memory()) - sum(before)) / count
        figures |= await answers(vms)
        began = time.perf_counter()
        await asyncio.gather(*(vm.aclose() for vm in vms))
        figures["stopped together, all"] = time.perf_counter() - began
        if count <= FLOODING:
            figures |= await exits(stack, count, seconds)
        return figures


async def alive(stack: AsyncExitStack, does: str, number: int) -> VM:
    """A guest that has printed."""
    vm = await stack.enter_async_context(VM(small(config(does, name=f"guest{number}"))))
    await vm.start()
    if "h" in does:
        await vm.serial.expect(rb"hello\n", timeout=300)
    else:
        await vm.pause()  # or those that are there would keep the others from coming
    return vm


async def answers(vms: list[VM]) -> dict[str, float]:
    """Each is sent a byte and sends it back; again, with all of them warm."""
    for _ in range(2):
        began = time.perf_counter()
        async with watched() as late:
            answered = await asyncio.gather(*(echo(vm) for vm in vms))
        took = time.perf_counter() - began
    return {
        "that answered": 100 * sum(answered) / len(vms),
        "answers": sum(answered) / took,
        "the loop late while all answer, p99": p99(late),
    }


async def echo(vm: VM) -> bool:
    """Whether its byte came back."""
    vm.serial.write(b"a")
    with suppress(TimeoutError):
        async with asyncio.timeout(60):
            return await vm.serial.read(1) == b"a"
    return False


async def exits(stack: AsyncExitStack, count: int, seconds: float) -> dict[str, float]:
    """Of guests that make them without end."""
    vms = await asyncio.gather(*(alive(stack, "x", number) for number in range(count)))
    await asyncio.gather(*(vm.resume() for vm in vms))
    before, began = sum(map(counter, vms)), time.perf_counter()
    async with watched() as late:
        await asyncio.sleep(seconds)
    done = (sum(map(counter, vms)) - before) / (time.perf_counter() - began)
    await asyncio.gather(*(vm.kill() for vm in vms))
    return {"exits that wait, all together": done, "the loop late while all make exits, p99": p99(late)}


@asynccontextmanager
async def watched() -> AsyncIterator[list[float]]:
    """How late the loop is meanwhile, in milliseconds, for who wants it back at once."""
    late: list[float] = []

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            late.append(1e3 * (time.perf_counter() - began))
            await asyncio.sleep(0.001)

    task = asyncio.create_task(watch())
    try:
        yield late
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def p99(times: list[float]) -> float:
    """0 where there was no time for one."""
    return sorted(times)[len(times) * 99 // 100] if times else 0.0


if __name__ == "__main__":
    print(json.dumps(uvloop.run(measure(int(sys.argv[1]), float(sys.argv[2])))))
