"""What the steps of a virtio driver's life cost: a disk that is sized, driven, and reset while it reads.

The driver is a real vCPU's (tests/guests/agent.S) that a thread of this process tells what to access. `loop` is processor time of
the event loop's thread, which all guests share, between a step's beginning and its end; `wall` is what the driver waits, with the
hand-over to the vCPU and back for each access. What KVM does for it meanwhile in other threads is in neither. A row is one step;
the first, a register that is read, is what each of the others' accesses cost by themselves.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import uvloop

from aiovmm.devices.virtio.blk import BlkDevice, DiskImage
from aiovmm.devices.virtio.blk.protocol import Request
from aiovmm.kvm import Kvm
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.virtqueue.status import Status
from benchmarks.driver_floods import size as size_bar
from benchmarks.harness import Options, Result, progress
from tests.devices.virtio.blk_driver import header
from tests.guests.machine import Machine
from tests.pci.test_kvm import Running

NEEDS_KVM = True
QUEUES = 2
READS = 8
STATUS = 0x14  # of the common configuration

Step = Callable[[], Awaitable[object]]
Times = dict[str, tuple[float, float]]


async def _life(driver: VirtioPciDriver, clock: int, times: dict[str, list[tuple[float, float]]]) -> None:
    """From a driver that comes to one that goes, timed step by step."""

    async def timed(name: str, step: Step) -> None:
        began, loop = time.perf_counter(), time.clock_gettime(clock)
        await step()
        times.setdefault(name, []).append((time.clock_gettime(clock) - loop, time.perf_counter() - began))

    async def read() -> None:
        assert driver.status & Status.DRIVER_OK

    async def drive() -> None:
        await driver.set_common(STATUS, status | Status.DRIVER_OK, 1)

    async def reset() -> None:
        await driver.set_common(STATUS, 0, 1)
        assert not driver.status

    await driver.start()
    await timed("a register is read", read)
    await timed("a BAR is sized", lambda: size_bar(driver))
    for queue in driver.queues:
        queue.add([header(Request.IN, 0)], [4096, 1])
        queue.kick()
        await queue.used()
        for sector in range(READS):
            queue.add([header(Request.IN, 8 * sector)], [4096, 1])
        queue.kick()
    await timed("a live disk is reset", reset)
    await driver.reset()
    status = Status(0)
    original, last = driver.set_common, Status.DRIVER_OK

    async def all_but_the_last(offset: int, value: int, size: int) -> None:
        nonlocal status
        if offset == STATUS and value & last:
            status = Status(value & ~last)
        else:
            await original(offset, value, size)

    driver.set_common = all_but_the_last  # type: ignore[method-assign]
    await driver.start()
    driver.set_common = original  # type: ignore[method-assign]
    await timed("DRIVER_OK is set", drive)


async def once(path: Path, lives: int) -> Times:
    """The middle one of `lives`, in seconds: of the loop's thread, and of the clock on the wall."""
    times: dict[str, list[tuple[float, float]]] = {}
    clock = time.pthread_getcpuclockid(threading.get_ident())
    disk = BlkDevice(DiskImage.open(path), num_queues=QUEUES)
    await disk.open()
    with Kvm.open() as kvm:
        async with Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:

            async def scenario(driver: VirtioPciDriver) -> None:
                for _ in range(lives):
                    await _life(driver, clock, times)

            await Running(machine, device=disk).drive(scenario)
    await disk.close()
    return {
        name: (statistics.median(loop for loop, _ in all_), statistics.median(wall for _, wall in all_))
        for name, all_ in times.items()
    }


def run(options: Options) -> Iterator[Result]:
    """A row a step, in microseconds."""
    rows: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = Path(folder) / "disk"
        path.write_bytes(bytes(1 << 20))
        for number in range(options.rounds):
            for name, (loop, wall) in uvloop.run(once(path, options.pick(50, 3))).items():
                row = rows.setdefault(name, Result(name, "us", "loop"))
                row.add("loop", 1e6 * loop)
                row.add("wall", 1e6 * wall)
                progress(row, number, options.rounds, "loop", 1e6 * loop)
    yield from rows.values()
