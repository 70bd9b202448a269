"""How long a guest that runs stands still for an incremental snapshot: a device of each kind, 256 MiB of memory with something
everywhere, and a tenth of the pages written to since the last, one here and one there: the most work for the least memory.

Bare-metal guests (tests/guests/kernel.S), which run on any KVM; the pages are written to from this process, as by a device.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from aiovmm import VM, MemoryConfig
from benchmarks.fork import devices
from benchmarks.harness import Options, Result, Target
from tests.vm.guest import config, counts_on

NEEDS_KVM = True
SIZE, PAGE, EACH = 256 << 20, 4096, 10
_ABOVE = 16 << 20  # the kernel and what firmware would leave


def fill(vm: VM, step: int, value: int) -> int:
    """Write to each `step`th page, above what the guest uses itself; how many that are."""
    pages = range(_ABOVE, SIZE, step * PAGE)
    for number, address in enumerate(pages):
        vm.machine.memory.write(address, (number + value).to_bytes(8, "little"))
    return len(pages)


async def snapshots(folder: Path, count: int) -> dict[str, list[float]]:
    """ms that the guest stood still, and that the whole took; of increments, and of the first."""
    found: dict[str, list[float]] = {"stood": [], "took": [], "whole": []}
    given = {**devices(folder, taps=False), "memory": MemoryConfig(SIZE)}
    async with VM(config("s", **given)) as vm:
        await vm.start()
        fill(vm, 1, 1)
        found["whole"].append((await vm.snapshot(folder / "0", track=True)).standstill * 1e3)
        for number in range(1, count + 1):
            await counts_on(vm)
            written = fill(vm, EACH, number * SIZE)
            began = time.perf_counter()
            taken = await vm.snapshot(folder / f"{number}", base=folder / f"{number - 1}")
            found["took"].append((time.perf_counter() - began) * 1e3)
            found["stood"].append(taken.standstill * 1e3)
            assert written <= taken.pages < written + 200
    return found


def run(options: Options) -> Iterator[Result]:
    """The standstill, beside that of the first snapshot, which is whole."""
    samples: dict[str, list[float]] = {"stood": [], "took": [], "whole": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            for row, values in uvloop.run(snapshots(Path(name), options.pick(10, 2))).items():
                samples[row].append(statistics.median(values))
    yield Result(
        "increment, 256 MiB, 10% written: the guest stands still",
        "ms",
        "aiovmm",
        ("whole",),
        Target(plus=50.0),
        {"aiovmm": samples["stood"], "whole": samples["whole"]},
    )
    yield Result("the same, until it is on the disk", "ms", "aiovmm", (), None, {"aiovmm": samples["took"]})
