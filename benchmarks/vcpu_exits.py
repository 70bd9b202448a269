"""What an exit costs, by the policy of its range, and how long pause and stop take.

    python -m benchmarks.vcpu_exits [--count N] [--rounds N] [--loop uvloop|asyncio]

A bare-metal guest repeats one port access. `nobody` is the floor: the C run loop answers it in the vCPU thread, as the
simplest monitor would. What `sync` costs above it is the round trip to the event loop and back.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import uvloop

from aiovmm.kvm import Kvm
from tests.guests.machine import IGNORED, LATCH, NOBODY, NOTED, POSTED, SYNC, Machine

CASES = {
    "nobody, read": (NOBODY, 0),
    "shadow, read": (LATCH, 0),
    "ignored, write": (IGNORED, 1),
    "latched, write": (LATCH, 1),
    "posted, write": (POSTED, 1),
    "noted, read": (NOTED, 0),
    "sync, read": (SYNC + 1, 0),
    "sync, write": (SYNC + 1, 1),
}


class Quiet:
    """A device that does nothing, so that only the path to it is measured."""

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        """Nothing."""

    def write_many(self, offset: int, data: bytes) -> None:
        """Nothing."""

    def note_read(self, offset: int, data: bytes) -> None:
        """Nothing."""


async def measure(kvm: Kvm, port: int, write: int, count: int) -> float:
    """Seconds per access."""
    async with Machine("timed", kvm=kvm) as m:
        done = asyncio.get_running_loop().create_future()
        for rng in m.bus.ranges():
            object.__setattr__(rng, "device", Quiet())
        quiet = m.sync_range.device
        quiet.write = lambda offset, data: done.set_result(None) if offset == 0 else None  # type: ignore[method-assign]
        for address, value in ((0x60010, port), (0x60014, count), (0x60018, write)):
            m.memory.write(address, value.to_bytes(4, "little"))
        began = time.perf_counter()
        m.start()
        await done
        return (time.perf_counter() - began) / count


async def run(count: int, rounds: int) -> None:
    """Print a table: best and median of `rounds`."""
    floor = 0.0
    with Kvm.open() as kvm:
        emulated = " (this KVM emulates guest kernel code)" if kvm.emulates_guest_code() else ""
        print(f"{count} accesses, {rounds} rounds{emulated}; microseconds an access")
        for name, (port, write) in CASES.items():
            times = [1e6 * await measure(kvm, port, write, count) for _ in range(rounds)]
            floor = floor or min(times)
            best, median = min(times), statistics.median(times)
            print(f"{name:15} best {best:7.2f}  median {median:7.2f}  above the floor {best - floor:6.2f}")


async def pauses(kvm: Kvm, rounds: int) -> list[float]:
    """Seconds from a pause request to a parked guest that was in a loop."""
    times = []
    async with Machine("forever", kvm=kvm) as m:
        m.start()
        for _ in range(rounds):
            await m.counts_on()
            began = time.perf_counter()
            await m.cpu.pause()
            times.append(time.perf_counter() - began)
            m.cpu.resume()
    return times


async def stops(kvm: Kvm, guest: str, rounds: int) -> list[float]:
    """Seconds from a stop request to the end of the thread."""
    times = []
    for _ in range(rounds):
        async with Machine(guest, kvm=kvm) as m:
            m.start()
            await m.until(lambda m=m: bool(m.log))  # type: ignore[misc]
            began = time.perf_counter()
            m.cpu.stop()
            await m.cpu.join()
            times.append(time.perf_counter() - began)
    return times


async def run_lifecycle(rounds: int) -> None:
    """Print median and worst of pause and stop."""
    print(f"pause and stop, {rounds} rounds; microseconds")
    with Kvm.open() as kvm:
        cases = {"pause": await pauses(kvm, rounds)}
        for guest in ("forever", "halted", "ask"):
            cases[f"stop {guest}"] = await stops(kvm, guest, rounds)
    for name, times in cases.items():
        print(f"{name:15} median {1e6 * statistics.median(times):7.0f}  worst {1e6 * max(times):7.0f}")


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    args = parser.parse_args()
    runner = uvloop.run if args.loop == "uvloop" else asyncio.run
    runner(run(args.count, args.rounds))
    runner(run_lifecycle(50))


if __name__ == "__main__":
    main()
