"""What a network frame costs, against the driver's simulator and a real TAP: `python -m benchmarks net_cost [--loop ...]`.

`depth` frames at a time, in a network namespace of its own (so it needs root). Sending: from the kick until all are returned and
the driver is interrupted; the host's network stack takes each frame and drops it, for it is of no known protocol. Receiving: the
frames wait in the TAP; from then until the driver has them. `loop` is the whole of it in microseconds a frame, in the event
loop's thread; `native` is the part inside native code (mostly the kernel's); the rest is Python. The driver is not timed.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from aiovmm.devices.virtio.net import NetDevice, TapBackend
from aiovmm.devices.virtio.net import pump as pump_module
from aiovmm.native import lib as native_lib
from aiovmm.testing import Harness
from aiovmm.virtqueue.driver import DriverQueue

DEPTHS = (1, 8, 32, 128)
SIZES = (60, 1514)
ROUNDS = 300
PROTOCOL = b"\x88\xb5"  # IEEE 802 local experimental EtherType 1
CLONE_NEWNET = 0x40000000


class TimedLib:
    """The native library, with the time spent in the two calls of the data path added up."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self.spent = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def avmm_net_receive(self, *arguments: Any) -> int:
        return self._timed(self._lib.avmm_net_receive, arguments)

    def avmm_net_send(self, *arguments: Any) -> int:
        return self._timed(self._lib.avmm_net_send, arguments)

    def _timed(self, call: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        began = time.perf_counter()
        result = call(*arguments)
        self.spent += time.perf_counter() - began
        return result


Measure = Callable[[Harness, TimedLib, socket.socket, bytes, int], Awaitable[tuple[float, float]]]


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


async def sending(h: Harness, lib: TimedLib, host: socket.socket, frame: bytes, depth: int) -> tuple[float, float]:
    """Microseconds a frame: all, and those in native code."""
    queue = h.queues[1]
    for _ in range(depth):
        queue.add([bytes(12) + frame])
    lib.spent = 0.0
    began = time.perf_counter()
    queue.kick()
    ended = await until_used(queue, depth)
    return (ended - began) / depth * 1e6, lib.spent / depth * 1e6


async def receiving(h: Harness, lib: TimedLib, host: socket.socket, frame: bytes, depth: int) -> tuple[float, float]:
    """Likewise."""
    queue = h.queues[0]
    while len(queue.free):
        queue.add([], [1526])
    queue.kick()
    await asyncio.sleep(0)
    for _ in range(depth):
        host.send(frame)
    lib.spent = 0.0
    began = time.perf_counter()
    ended = await until_used(queue, depth)
    return (ended - began) / depth * 1e6, lib.spent / depth * 1e6


async def run() -> None:
    lib = TimedLib(native_lib)
    vars(pump_module)["lib"] = lib
    device = NetDevice(TapBackend(), mac=b"\x2e\0\0\0\0\1")
    async with Harness(device) as h:
        await asyncio.sleep(0.05)
        host = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        host.bind(("aiovmm0", 0))
        print("microseconds a frame")
        ways: tuple[tuple[str, Measure], ...] = (("send", sending), ("receive", receiving))
        for name, measure in ways:
            for size in SIZES:
                frame = b"\xff" * 6 + b"\x2e\0\0\0\0\1" + PROTOCOL + bytes(size - 14)
                for depth in DEPTHS:
                    times = sorted([await measure(h, lib, host, frame, depth) for _ in range(ROUNDS)])
                    whole, native = times[len(times) // 2]
                    figures = f"loop {whole:7.2f}  native {native:7.2f}  python {whole - native:7.2f}"
                    print(f"{name:8} {size:5} bytes  depth {depth:>4}: {figures}")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks net_cost", description=__doc__)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    arguments = parser.parse_args()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) < 0:
        print(f"no network namespace of its own: {os.strerror(ctypes.get_errno())}; it needs root", file=sys.stderr)
        return 1
    if arguments.loop == "uvloop":
        uvloop.run(run())
    else:
        asyncio.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
