"""Processor time of twenty idle guests: one process of ours against twenty of QEMU's. Boots stock kernels.

All forty guests wait for a line on their serial ports. User and system time of the monitors is read at the ends of the same
stretches of time.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import uvloop

from aiovmm import VM, MemoryConfig, PayloadConfig, VMConfig, architecture
from benchmarks.boot import MACHINES
from benchmarks.guest import AIOVMM, BOOT, CMDLINE, Files, Guest, qemu_command
from benchmarks.harness import Options, Result, Target, progress

NESTED = True
MIB = 128
READY = b"benchmark: ready"
SETTLE = 10.0  # seconds that the guests have to come to rest


def run(options: Options) -> Iterator[Result]:
    """One row: percent of a processor."""
    count, seconds = options.pick(20, 2), options.pick(5, 1)
    machine, kind = next(iter(MACHINES[architecture.host().name].items()))
    peer = f"{count} x {machine}"
    result = Result(f"processor time of {count} idle guests", "%", AIOVMM, (peer,), Target(1.1))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        files = Files(Path(name), options.release)
        ours = stack.enter_context(holding(files, count))
        theirs = [stack.enter_context(qemu(files, number, kind)).pid for number in range(count)]
        time.sleep(options.pick(SETTLE, 1))
        processes = {peer: theirs, AIOVMM: [ours.pid]}
        for number in range(options.rounds):
            before = {who: processor_time(pids) for who, pids in processes.items()}
            began = time.monotonic()
            time.sleep(seconds)
            took = time.monotonic() - began
            for who, pids in processes.items():
                result.add(who, 100 * (processor_time(pids) - before[who]) / took)
                progress(result, number, options.rounds, who, result.samples[who][-1])
    yield result


def processor_time(pids: Sequence[int]) -> float:
    """Seconds of user and system time of all threads of these processes (proc(5): fields 14 and 15 of stat)."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def qemu(files: Files, number: int, kind: str) -> Guest:
    """One of QEMU's guests, in a machine of that kind."""
    place = files.folder / f"qemu{number}.sock"
    return Guest(f"QEMU {number}", qemu_command(files, f"unix:{place},server=on,wait=on", mib=MIB, machine=kind), place)


class holding:  # noqa: N801 - a context manager, used as one
    """A process with `count` guests of ours, all at rest."""

    def __init__(self, files: Files, count: int) -> None:
        self._command = [sys.executable, "-m", "benchmarks.idle", str(files.kernel), str(files.initramfs), str(count)]

    def __enter__(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != READY:
            self.__exit__()
            raise RuntimeError("our guests did not come up")
        return self._process

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.communicate()


async def hold(kernel: Path, initramfs: Path, count: int) -> None:
    """Boot the guests, say that they are up, and stay."""
    config = VMConfig(PayloadConfig(kernel, initramfs, CMDLINE), memory=MemoryConfig(MIB << 20))
    async with AsyncExitStack() as stack:
        guests = [await stack.enter_async_context(VM(config)) for _ in range(count)]
        for vm in guests:
            await vm.start()
        await asyncio.gather(*(vm.serial.expect(READY, timeout=count * BOOT) for vm in guests))
        print(READY.decode(), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(hold(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
