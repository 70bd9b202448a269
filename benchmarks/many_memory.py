"""What many guests in one process cost beside time: descriptors, memory, and what it takes to stop them all.

Bare-metal guests of 2 MiB, without devices and with five of them at work (disk, card, console, entropy, vsock): each has a
driver, and one has served a request. Each configuration in a process of its own. Memory is resident memory and the kernel's
slab, which other work on the machine disturbs; the network needs root.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import uvloop

from aiovmm import VM, MemoryConfig, VMConfig
from benchmarks.harness import Options, Result, Target, progress
from benchmarks.network import own_network
from tests.vm.drivers import five_devices, start_drivers
from tests.vm.guest import config

ROWS = {  # of what a process reports: its unit, and the most without devices and with five
    "descriptors a guest": ("", 3.0, 12.0),
    "memory a guest": ("KiB", 320.0, 512.0),
    "stopping all": ("s", 1.0, 1.0),
    "the loop late meanwhile": ("ms", 20.0, 20.0),
    "resident memory that stays": ("MiB", 10.0, 10.0),
}
SETTLE, MANY = 3.0, 100  # seconds until idle threads have ended; of fewer guests it does not show


def rows(options: Options) -> Iterator[Result]:
    """Five rows for each of the two configurations."""
    count = options.pick(1000, 20)
    for devices in (0, 5) if os.geteuid() == 0 else (0,):
        name = f"{count} guests, {devices or 'no'} devices"
        if not options.wants(name):
            continue
        found = {
            what: Result(f"{name}: {what}", unit, target=Target(plus=limits[bool(devices)]))
            for what, (unit, *limits) in ROWS.items()
        }
        for number in range(options.pick(min(options.rounds, 3), 1)):
            measured = in_a_process(devices, count)
            for what, value in measured.items():
                found[what].add("aiovmm", value)
            progress(found["memory a guest"], number, options.rounds, "aiovmm", measured["memory a guest"])
        yield from found.values()


def in_a_process(devices: int, count: int) -> dict[str, float]:
    """What `measure` gives there."""
    command = [sys.executable, "-m", "benchmarks.many_memory", str(devices), str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return {str(what): float(value) for what, value in json.loads(done.stdout).items()}


async def measure(folder: Path, devices: int, count: int) -> dict[str, float]:
    """One after the other is made, all are alive, all are stopped at once. Keys as in ROWS."""
    first = await alive(folder, devices, -1)  # what the process has once
    gc.collect()
    before, files = memory(), open_files()
    guests = [await alive(folder, devices, number) for number in range(count)]
    await asyncio.sleep(SETTLE if count >= MANY else 0.0)
    gc.collect()
    there, opened = memory(), open_files()
    lateness = asyncio.create_task(lag())
    await asyncio.sleep(0.1)
    began = time.perf_counter()
    await asyncio.gather(*(vm.aclose() for vm in guests))
    took = time.perf_counter() - began
    lateness.cancel()
    with suppress(asyncio.CancelledError):
        await lateness
    guests.clear()
    gc.collect()  # before all is quiet: what the collector frees is given back with the rest
    await asyncio.sleep(SETTLE if count >= MANY else 0.0)
    left = memory()
    await first.aclose()
    return {
        "descriptors a guest": (opened - files) / count,
        "memory a guest": (sum(there) - sum(before)) / count,
        "stopping all": took,
        "the loop late meanwhile": 1e3 * WORST[0],
        "resident memory that stays": (left[0] - before[0]) / 1024,
    }


async def alive(folder: Path, devices: int, number: int) -> VM:
    """A guest that has printed, and whose devices have drivers and have answered."""
    vm = VM(small(five_devices(folder, f"guest{number}") if devices else config("hi", name=f"guest{number}")))
    await vm.__aenter__()
    await vm.start()
    await vm.serial.expect(rb"hello\n", timeout=60)
    if devices:
        drivers = await start_drivers(vm)
        await drivers["rng"].request(0, writable=[64])
    return vm


def small(of: VMConfig) -> VMConfig:
    """The same with 2 MiB."""
    return replace(of, memory=MemoryConfig(2 << 20))


WORST = [0.0]


async def lag() -> None:
    """How late the loop is at worst, into WORST, until cancelled."""
    while True:
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        WORST[0] = max(WORST[0], time.perf_counter() - due)


def memory() -> tuple[int, int]:
    """KiB: resident, and the kernel's slab of the whole machine."""
    return field("/proc/self/status", "VmRSS"), field("/proc/meminfo", "Slab")


def field(file: str, name: str) -> int:
    """A number of KiB in a file of /proc."""
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(f"{name}:"))


def open_files() -> int:
    """Descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def main(devices: int, count: int) -> None:
    """In a process of its own: JSON on standard output."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, own_network():
        print(json.dumps(uvloop.run(measure(Path(folder), devices, count))))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
