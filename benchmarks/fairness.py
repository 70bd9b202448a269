"""What a guest notices of its neighbours: echoes on its serial port, alone and beside many that compute or flood.

Bare-metal guests in one process. The one that is asked halts between its interrupts, as an idle kernel does. What neighbours that
only compute take is the host's scheduler's doing, and the measure for the others: those take the event loop as well. How much of
the time the loop's thread stood in line for a processor is told beside: so long no turn of the loop's could help.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from aiovmm import VM, RngConfig, VMConfig
from aiovmm.pci.capabilities import VirtioCapType
from benchmarks.harness import Options, Result, Target
from benchmarks.many_loop import processor
from tests.vm.drivers import start_drivers
from tests.vm.guest import config, counts_on

NEEDS_KVM = True
ALONE, COMPUTING = "alone", "computing"
NEIGHBOURS = 32
KINDS = {COMPUTING: "s", "notifications": "d", "serial output": "w", "exits": "x"}
"""What neighbours do, by the letters of tests/guests/kernel.S."""
DOORBELL = 0x60018
IN_FLIGHT = 16  # bytes, of a stream: what the port's FIFO takes


async def echo(vm: VM) -> float:
    """Seconds from a byte to its echo."""
    began = time.perf_counter()
    vm.serial.write(b"a")
    await vm.serial.read(1)
    return time.perf_counter() - began


async def echoes(vm: VM, seconds: float) -> list[float]:
    """Of one byte after the other, with pauses in which all comes to rest; sorted."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        times.append(await echo(vm))
        await asyncio.sleep(0.003)
    return sorted(times)


async def stream(vm: VM, seconds: float) -> float:
    """Bytes a second of a stream that comes back."""
    began, done = time.perf_counter(), 0
    vm.serial.write(bytes(IN_FLIGHT))
    while time.perf_counter() < began + seconds or done < IN_FLIGHT:
        got = len(await vm.serial.read(IN_FLIGHT))
        done += got
        vm.serial.write(bytes(got))
    return done / (time.perf_counter() - began)


async def lag(seconds: float) -> list[float]:
    """How late the loop is for who wants it back at once; sorted."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        await asyncio.sleep(0)
        times.append(time.perf_counter() - began)
        await asyncio.sleep(0.001)
    return sorted(times)


def neighbour(does: str, number: int) -> VMConfig:
    """The configuration of one."""
    rng = RngConfig() if does == "d" else None
    return config(does, name=f"neighbour{number}", rng=rng)


async def begin(vm: VM, does: str) -> None:
    """Have a neighbour do what it does."""
    await vm.start()
    if does == "d":
        driver = (await start_drivers(vm))["rng"]
        await driver.set_common(0x16, 0, 2)
        notify = driver.structures[VirtioCapType.NOTIFY].address + driver.common(0x1E, 2) * driver.notify_multiplier
        vm.machine.memory.write(DOORBELL, notify.to_bytes(8, "little"))
    await counts_on(vm)


async def beside(does: str, count: int, seconds: float, listens: str = "l") -> dict[str, float]:
    """All figures of one neighbourhood."""
    async with AsyncExitStack() as stack:
        asked = await stack.enter_async_context(VM(config(listens, name="asked")))
        await asked.start()
        await asyncio.wait_for(echo(asked), 10)
        vms = [await stack.enter_async_context(VM(neighbour(does, number))) for number in range(count)]
        await asyncio.gather(*(begin(vm, does) for vm in vms))
        began, (_, waited) = time.perf_counter(), processor()
        times = await echoes(asked, seconds)
        in_line = 100 * (processor()[1] - waited) / (time.perf_counter() - began)
        late = await lag(seconds)
        figures = {"p50": 1e3 * times[len(times) // 2], "p99": 1e3 * times[len(times) * 99 // 100]}
        figures |= {"lag p99": 1e3 * late[len(late) * 99 // 100], "lag max": 1e3 * late[-1]}
        return figures | {"rate": await stream(asked, seconds), "in line": in_line}


def sample(does: str, count: int, seconds: float, listens: str = "l") -> dict[str, float]:
    """The figures of one neighbourhood, in a process of its own."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", __name__, does, str(count), str(seconds), listens]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"beside {count} that do {does!r}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def run(options: Options) -> Iterator[Result]:
    """For each kind of neighbours: echoes against those alone, a stream against that beside neighbours who compute, the loop."""
    seconds, count = options.pick(2.0, 0.1), options.pick(NEIGHBOURS, 3)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in (ALONE, *KINDS)}
    polled = Result("echo on a port that is polled, alone", "ms", target=Target(plus=0.5))
    for number in range(options.rounds):
        for name, samples in figures.items():
            samples.append(sample(KINDS.get(name, "s"), 0 if name == ALONE else count, seconds))
            print(f"fairness: round {number + 1}/{options.rounds}: {name}: {samples[-1]}", file=sys.stderr, flush=True)
        polled.add("aiovmm", sample("s", 0, seconds, "e")["p50"])
    yield polled
    for name in KINDS:
        of = {"aiovmm": figures[name], ALONE: figures[ALONE], COMPUTING: figures[COMPUTING]}
        beside = f"beside {count}: {name}"
        yield _row(f"echo {beside}, median", "ms", of, "p50", ALONE, None if name == COMPUTING else Target(2.0))
        yield _row(f"echo {beside}, 99 of 100", "ms", of, "p99", ALONE)
        if name != COMPUTING:
            yield _row(f"stream {beside}", "bytes a second", of, "rate", COMPUTING, Target(0.8, most=False))
        yield _row(f"the loop waits for a processor {beside}", "% of the time", of, "in line", ALONE)
        yield _row(f"lag of the loop {beside}, 99 of 100", "ms", of, "lag p99", ALONE, Target(plus=10.0))
        yield _row(f"lag of the loop {beside}, longest", "ms", of, "lag max", ALONE, Target(plus=50.0))


def _row(
    name: str,
    unit: str,
    of: dict[str, list[dict[str, float]]],
    figure: str,
    peer: str,
    target: Target | None = None,
) -> Result:
    samples = {who: [sample[figure] for sample in of[who]] for who in ("aiovmm", peer)}
    return Result(name, unit, peers=(peer,), target=target, samples=samples)


if __name__ == "__main__":
    print(json.dumps(uvloop.run(beside(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]))))
