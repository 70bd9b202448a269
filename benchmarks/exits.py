"""What a register access costs, by the policy of its range, against a C monitor that answers it in the vCPU's thread.

A bare-metal guest on /dev/kvm repeats one port access. `sync` waits for the event loop, `posted` leaves a write on the ring,
`shadow` answers a read from a byte that Python keeps up to date. The C monitor (exits_floor.c) runs the same guest.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from aiovmm.kvm import Kvm
from benchmarks.harness import Options, Result, Target, run_rounds
from benchmarks.programs import program
from tests.guests import build
from tests.guests.machine import IGNORED, LATCH, NOTED, POSTED, SYNC, Machine

NEEDS_KVM = True
READ, WRITE = 0, 1
_WAITS, _GOES_ON = Target(2.0, 15.0), Target(1.2)
CASES = {
    "sync read": (SYNC + 1, READ, _WAITS),
    "sync write": (SYNC + 1, WRITE, _WAITS),
    "posted write": (POSTED, WRITE, _GOES_ON),
    "shadow read": (LATCH, READ, _GOES_ON),
    "latched write": (LATCH, WRITE, None),
    "noted read": (NOTED, READ, None),
    "ignored write": (IGNORED, WRITE, None),
}


class Quiet:
    """A device that does nothing, so that only the path to it is measured."""

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        """Nothing."""

    def write_many(self, offset: int, data: bytes, size: int) -> None:
        """Nothing."""

    def note_read(self, offset: int, data: bytes) -> None:
        """Nothing."""


def run(options: Options) -> Iterator[Result]:
    """A row for each policy, in microseconds an access."""
    count = options.pick(20_000, 1_000)
    with tempfile.TemporaryDirectory() as name, Kvm.open() as kvm:
        guest = Path(name, "timed.bin")
        guest.write_bytes(build("timed"))
        for case, (port, write, target) in CASES.items():
            if options.wants(case):
                contestants = {
                    "C monitor": lambda p=port, w=write: floor(guest, p, w, count),
                    "aiovmm": lambda p=port, w=write: uvloop.run(measure(kvm, p, w, count)),
                }
                result = Result(case, "us", "aiovmm", ("C monitor",), target)
                yield run_rounds(result, contestants, options.rounds)


def floor(guest: Path, port: int, write: int, count: int) -> float:
    """Microseconds an access under the C monitor."""
    command = [str(word) for word in (program("exits_floor"), guest, port, count, write)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout) / 1e3


async def measure(kvm: Kvm, port: int, write: int, count: int) -> float:
    """The same under ours."""
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
        async with asyncio.timeout(60):
            await done
        return (time.perf_counter() - began) / count * 1e6
