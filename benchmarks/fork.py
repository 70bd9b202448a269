"""Forks of a frozen guest with a device of each kind, against the system calls that a fork without any takes (fork_floor.c).

Bare-metal guests (tests/guests/kernel.S), which run on any KVM. `floor` is that C program; `loop` is the time that a fork has of
the event loop's thread.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from aiovmm import VM, ConsoleConfig, DiskConfig, MemoryConfig, NetConfig, RngConfig, Template, VsockConfig
from benchmarks.harness import Options, Result, Target
from benchmarks.programs import program
from tests.vm.guest import config, counts_on

NEEDS_KVM = True
MIB = 64


def devices(folder: Path, taps: bool) -> dict[str, Any]:
    """Serial port and PCI are there anyway."""
    (folder / "disk").write_bytes(bytes(1 << 20))
    return {
        "memory": MemoryConfig(MIB << 20),
        "console": ConsoleConfig(),
        "rng": RngConfig(),
        "vsock": VsockConfig(),
        "disks": (DiskConfig(path=folder / "disk"),),
        "nets": (NetConfig(),) if taps else (),
    }


@asynccontextmanager
async def template(folder: Path, does: str = "s", *, taps: bool = True) -> AsyncIterator[Template]:
    """Of a guest that has run."""
    async with VM(config(does, **devices(folder, taps))) as vm:
        await vm.start()
        if does == "s":
            await counts_on(vm)
        frozen = await vm.freeze()
    async with frozen:
        yield frozen


async def one_by_one(folder: Path, count: int) -> tuple[list[float], list[float]]:
    """Seconds of each fork, from the call to `resume` done, and of these on the event loop's thread."""
    taken, on_loop = [], []
    async with template(folder) as frozen:
        for _ in range(count):
            began, ran = time.perf_counter(), time.thread_time()
            async with frozen.fork() as child:
                await child.resume()
                taken.append(time.perf_counter() - began)
                on_loop.append(time.thread_time() - ran)
    return taken, on_loop


async def at_once(folder: Path, count: int) -> tuple[float, float]:
    """Seconds until that many are there, and each answers; KiB of the process for each."""
    async with template(folder, "heh", taps=False) as frozen, AsyncExitStack() as stack:
        before, began = resident(), time.perf_counter()

        async def answers() -> None:
            child = await stack.enter_async_context(frozen.fork())
            await child.resume()
            await child.serial.send(b"q")
            await child.serial.expect(rb"qhello", timeout=60)

        await asyncio.gather(*(answers() for _ in range(count)))
        return time.perf_counter() - began, (resident() - before) / count


def resident() -> float:
    """KiB of this process that are its own: private pages, and its share of others."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return float(line.split()[1])
    return 0.0


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def floor(count: int) -> list[float]:
    """ms: p50, p99, all."""
    done = subprocess.run(
        [program("fork_floor"), str(count), str(MIB)], capture_output=True, text=True, check=True, timeout=120
    )
    return [float(word) for word in done.stdout.split()]


def run(options: Options) -> Iterator[Result]:
    """p50 and p99 of a fork, what it has of the loop, and a thousand at once."""
    count = options.pick(100, 20)
    samples: dict[str, dict[str, list[float]]] = {row: {"aiovmm": [], "floor": []} for row in ("p50", "p99", "loop")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(options.rounds):
            taken, on_loop = uvloop.run(one_by_one(folder, count))
            least = floor(count)
            samples["p50"]["aiovmm"].append(statistics.median(taken) * 1e3)
            samples["p50"]["floor"].append(least[0])
            samples["p99"]["aiovmm"].append(percentile(taken, 0.99) * 1e3)
            samples["p99"]["floor"].append(least[1])
            samples["loop"]["aiovmm"].append(statistics.median(on_loop) * 1e3)
        yield Result("fork, p50", "ms", "aiovmm", ("floor",), Target(2.0), samples["p50"])
        yield Result("fork, p99", "ms", "aiovmm", ("floor",), Target(4.0), samples["p99"])
        yield Result("fork, of the loop", "ms", "aiovmm", (), Target(plus=1.5), {"aiovmm": samples["loop"]["aiovmm"]})
        many = options.pick(1000, 50)
        seconds, kib = uvloop.run(at_once(folder, many))
        yield Result(
            f"{many} forks that answer", "s", "aiovmm", (), Target(plus=3.0 * many / 1000), {"aiovmm": [seconds]}
        )
        yield Result(f"{many} forks, each", "KiB", "aiovmm", (), Target(plus=300.0), {"aiovmm": [kib]})
