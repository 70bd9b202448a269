"""What a disk request costs, against the driver's simulator: `python -m benchmarks blk_cost [--loop ...] [--io ...]`.

Reads of 4 KiB from the page cache, `depth` of them offered at a time; each round begins with the kick and ends when the device
has interrupted and all are returned. `loop` is the whole of it in microseconds a request, in the event loop's thread and
including what the kernel copies; `native` is the part inside native code (rings, io_uring, status); the rest is Python.
The driver's own work is not timed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import struct
import sys
import tempfile
import time
from typing import Any

import uvloop

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage, queue, service
from aiovmm.devices.virtio.blk.engine import IoKind
from aiovmm.native import lib as native_lib
from aiovmm.testing import Harness

DEPTHS = (1, 8, 32, 128)
ROUNDS = 400
SIZE = 16 << 20


class TimedLib:
    """The native library, with the time spent in the two calls of the data path added up."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self.spent = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def avmm_blk_serve(self, queue: Any) -> int:
        began = time.perf_counter()
        mask: int = self._lib.avmm_blk_serve(queue)
        self.spent += time.perf_counter() - began
        return mask

    def avmm_blk_reap(self, disk: Any) -> int:
        began = time.perf_counter()
        mask: int = self._lib.avmm_blk_reap(disk)
        self.spent += time.perf_counter() - began
        return mask


async def measure(h: Harness, lib: TimedLib, depth: int) -> tuple[float, float]:
    """Microseconds a request: all, and those in native code. Medians."""
    q = h.queues[0]
    times = []
    for round_ in range(ROUNDS):
        for i in range(depth):
            sector = (round_ * depth + i) * 8 % (SIZE // 512)
            q.add([struct.pack("<IIQ", 0, 0, sector)], [4096, 1])
        lib.spent = 0.0
        began = time.perf_counter()
        q.kick()
        left = depth
        while left:
            q.irq.clear()
            if q.enable_interrupts():
                await q.irq.wait()
            took = time.perf_counter() - began
            left -= len(q.poll())
        times.append((took / depth * 1e6, lib.spent / depth * 1e6))
    times.sort()
    return times[len(times) // 2]


async def run(io: IoKind) -> None:
    lib = TimedLib(native_lib)
    for module in (service, queue):
        vars(module)["lib"] = lib
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.write(os.urandom(SIZE))
        file.flush()
        disk = BlkDevice(DiskImage.open(file.name), queue_size=512, io=io)
        async with Harness(disk) as h:
            print(f"{disk.io.value}: microseconds a request")
            for depth in DEPTHS:
                whole, native = await measure(h, lib, depth)
                print(f"depth {depth:>4}: loop {whole:7.2f}  native {native:7.2f}  python {whole - native:7.2f}")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks blk_cost", description=__doc__)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--io", choices=[kind.value for kind in IoKind], default=IoKind.AUTO.value)
    arguments = parser.parse_args()
    body = run(IoKind(arguments.io))
    if arguments.loop == "uvloop":
        uvloop.run(body)
    else:
        asyncio.run(body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
