"""What a request costs the event loop's thread on a ring, before any device does anything for it.

Requests have the shape of a block request (16 bytes, 512 bytes and a status byte, three descriptors) and are offered `depth`
at a time; what is timed begins when the device takes them and ends when it has returned them and decided on the interrupt.
`ring` is the native pop and push alone, the part that another ring format could make faster; `batch` adds the Python of a
device that hands batches to native code; `chain` is `async for chain in queue` without touching the data; `echo` also reads
16 bytes and writes 16. A sample is the least of many shots, in microseconds a request.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator

import uvloop

from aiovmm.irq import RecordingLine
from aiovmm.memory import GuestMemory
from aiovmm.native import ffi, lib
from aiovmm.virtqueue import Batch, Queue
from aiovmm.virtqueue.driver import Arena, DriverQueue
from aiovmm.virtqueue.features import RING_FEATURES
from benchmarks.harness import Options, Result

DEPTHS = (1, 32)


class Bench:
    def __init__(self, memory: GuestMemory, fd: int) -> None:
        self.driver = DriverQueue(memory, Arena(0x1000, 0x200000), lambda: None, size=512)
        config = self.driver.config()
        self.queue = Queue.activate(
            config, memory, index=0, features=RING_FEATURES, kick_fd=fd, interrupt=RecordingLine()
        )
        self.table = memory.table
        self.batch = Batch(512, 2048)
        self.heads = ffi.new("uint16_t[]", 512)
        self.lengths = ffi.new("uint32_t[]", 512)

    async def ring(self, depth: int) -> float:
        """The heads are known beforehand, so that nothing but the two native calls is in between."""
        batch, native = self.batch, self.queue.native
        began = time.perf_counter()
        lib.avmm_queue_pop(native, self.table, batch.chains, depth, batch.iov, ffi.NULL, batch.max_iov, batch.error)
        lib.avmm_queue_push(native, self.heads, self.lengths, depth)
        lib.avmm_queue_needs_interrupt(native)
        return time.perf_counter() - began

    async def batches(self, depth: int) -> float:
        began = time.perf_counter()
        count = self.queue.pop_batch(self.batch)
        self.queue.push_many(self.heads, self.lengths, count)
        return time.perf_counter() - began

    async def chain(self, depth: int) -> float:
        began = time.perf_counter()
        for _ in range(depth):
            self.queue.push(await anext(self.queue), 0)
        self.queue.flush()
        return time.perf_counter() - began

    async def echo(self, depth: int) -> float:
        began = time.perf_counter()
        for _ in range(depth):
            chain = await anext(self.queue)
            chain.write(chain.read(16))
            self.queue.push(chain)
        self.queue.flush()
        return time.perf_counter() - began

    async def least(self, case: Callable[[int], Awaitable[float]], depth: int, shots: int) -> float:
        """Microseconds a request."""
        best = float("inf")
        for _ in range(shots):
            for i in range(depth):
                self.heads[i] = self.driver.add([b"h" * 16], [512, 1])
            self.driver.enable_interrupts()
            best = min(best, await case(depth))
            self.driver.poll()
        return best / depth * 1e6


def run(options: Options) -> Iterator[Result]:
    """A row for each case and depth."""
    results: dict[str, Result] = {}
    for _ in range(options.rounds):
        for name, value in uvloop.run(one_round(options.pick(300, 30))):
            results.setdefault(name, Result(name, "us")).add("aiovmm", value)
    yield from (result for name, result in results.items() if options.wants(name))


async def one_round(shots: int) -> list[tuple[str, float]]:
    """Every case at every depth."""
    memory = GuestMemory.create([(0, 4 << 20)])
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    bench = Bench(memory, fd)
    cases = {"ring": bench.ring, "batch": bench.batches, "chain": bench.chain, "echo": bench.echo}
    values = [(f"{n}, depth {d}", await bench.least(case, d, shots)) for n, case in cases.items() for d in DEPTHS]
    bench.queue.close()
    os.close(fd)
    memory.close()
    return values
