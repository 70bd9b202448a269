"""What a request costs the event loop's thread in each device, against the driver's simulator, and how much of it is Python.

`depth` requests are offered at a time; a shot begins with the kick and ends when the device has interrupted and all are back.
`loop` is the whole of it, including what the host's kernel does; `native` is the part inside native code (rings, io_uring, system
calls); the rest is Python. The driver's own work is not timed. Microseconds a request; needs no KVM, and root for the network.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop

from aiovmm.native import lib as native_lib
from aiovmm.virtqueue.driver import DriverQueue
from benchmarks.device_loads import LOADS, Load
from benchmarks.harness import Options, Result, Target, progress
from benchmarks.network import own_network

DEPTH = 32
OTHER_DEPTHS = (1, 8)


def run(options: Options) -> Iterator[Result]:
    """A row for each load."""
    lib = TimedLib(native_lib)
    with patched(lib), own_network(), tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for name, load in LOADS.items():
            if options.wants(name):
                yield uvloop.run(measure(name, load, Path(folder), lib, options))


async def measure(name: str, load: Load, folder: Path, lib: TimedLib, options: Options) -> Result:
    """One row, at depth 32; the other depths go into a note."""
    result = Result(f"{name}, depth {DEPTH}", "us", "Python", (), Target(plus=1.0))
    shots = options.pick(200, 20)
    async with load(folder) as shot:
        for number in range(options.rounds):
            whole, native = await median_of(shot, lib, DEPTH, shots)
            for part, value in (("Python", whole - native), ("native", native), ("loop", whole)):
                result.add(part, value)
            progress(result, number, options.rounds, "Python", whole - native)
        others = {depth: await median_of(shot, lib, depth, shots) for depth in OTHER_DEPTHS}
    result.notes["requests a second of one core"] = f"{1e6 / result.median('loop'):,.0f}"
    result.notes["Python at other depths"] = ", ".join(f"{d}: {w - n:.2f} us" for d, (w, n) in others.items())
    return result


async def median_of(shot: Any, lib: TimedLib, depth: int, shots: int) -> tuple[float, float]:
    """Microseconds a request, all and native, of the shot in the middle."""
    taken = sorted([await timed(shot, lib, depth) for _ in range(shots)])
    return taken[len(taken) // 2]


async def timed(shot: Any, lib: TimedLib, depth: int) -> tuple[float, float]:
    """The same of one shot."""
    queue, begin = await shot(depth)
    lib.spent, lib.calls = 0.0, 0
    began = time.perf_counter()
    begin()
    ended = await until_used(queue, depth)
    whole = ended - began - lib.calls * lib.overhead
    return whole / depth * 1e6, lib.spent / depth * 1e6


async def until_used(queue: DriverQueue, count: int) -> float:
    """When the last of `count` chains was back, by interrupts alone."""
    now = time.perf_counter()
    while count > 0:
        queue.irq.clear()
        if queue.enable_interrupts():
            await queue.irq.wait()
        now = time.perf_counter()
        count -= len(queue.poll())
    return now


class TimedLib:
    """The native library, with the time spent in its functions added up in `spent`, and what that timing itself costs."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self.spent = 0.0
        self.calls = 0
        self.overhead = max(_seconds_a_call(self.avmm_fence) - _seconds_a_call(lib.avmm_fence), 0.0)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._lib, name)
        if not callable(value):
            return value
        function = self._timed(value)
        setattr(self, name, function)
        return function

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = call(*arguments)
            self.spent += time.perf_counter() - began
            self.calls += 1
            return result

        return timed_call


def _seconds_a_call(function: Callable[[], Any], count: int = 2000) -> float:
    def once() -> float:
        began = time.perf_counter()
        for _ in range(count):
            function()
        return (time.perf_counter() - began) / count

    return statistics.median(once() for _ in range(9))


class patched:  # noqa: N801 - a context manager, used as one
    """The devices and their queues, though not the driver's simulator, use this library meanwhile."""

    def __init__(self, lib: TimedLib) -> None:
        self._lib = lib

    def __enter__(self) -> None:
        names = [n for n in sys.modules if n.startswith(("aiovmm.devices.virtio.", "aiovmm.virtqueue."))]
        ours = [vars(sys.modules[n]) for n in names if not n.endswith(".driver")]
        self._places = [place for place in ours if place.get("lib") is native_lib]
        for place in self._places:
            place["lib"] = self._lib

    def __exit__(self, *_exc: object) -> None:
        for place in self._places:
            place["lib"] = native_lib
