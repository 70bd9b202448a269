"""What idle Linux guests take of the host's memory: one process of ours against a process each of QEMU's, and of the C floor's.

Proportional set size: each page counts once, however many guests map it; a guest's own pages are most of it. A further guest is
the difference between many and few of one process, by their number: what is held once for all is in neither.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Self

from aiovmm import architecture
from benchmarks.boot import MACHINES
from benchmarks.floors import floor_command
from benchmarks.guest import AIOVMM, BOOT, CMDLINE, Files, Guest, aiovmm_command, qemu_command
from benchmarks.harness import Options, Result, Target, run_rounds
from benchmarks.idle import MIB, READY, holding

NESTED = True
SETTLE = 5.0  # seconds that the guests have to come to rest
FLOOR = "C floor"


def run(options: Options) -> Iterator[Result]:
    """Four rows, in MiB."""
    few, many, most = options.pick(4, 2), options.pick(20, 3), options.pick(32, 3)
    rounds = min(options.rounds, 3)  # it hardly differs
    machine = next(iter(MACHINES[architecture.host().name]))
    with tempfile.TemporaryDirectory() as name:
        held = Held(Files(Path(name), options.release))
        one = Result("one idle guest of 256 MiB, process included", "MiB", target=Target(plus=95))
        yield run_rounds(one, {AIOVMM: held.one}, rounds)
        row = Result(f"an idle guest of {many} in a process", "MiB", AIOVMM, (machine,), Target(1.0))
        yield run_rounds(row, {machine: lambda: held.qemus(many, machine), AIOVMM: lambda: held.ours(many)}, rounds)
        row = Result(f"an idle guest of {few} in a process", "MiB", AIOVMM, (FLOOR,), Target(1.0, 1.0))
        yield run_rounds(row, {FLOOR: lambda: held.floors(few), AIOVMM: lambda: held.ours(few)}, rounds)
        further = Result(f"a further guest, up to {most}", "MiB", AIOVMM, (FLOOR,), Target(1.0, 1.0))
        for _ in range(rounds):
            further.add(FLOOR, held.floors(1))
            further.add(AIOVMM, (most * held.ours(most) - held.ours(1)) / (most - 1))
        yield further


class Held:
    """Guests at rest, and what each takes."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._floor = [str(word) for word in floor_command(files, MIB, CMDLINE)]

    def ours(self, count: int) -> float:
        with holding(self._files, count) as process:
            return settled([process.pid]) / count

    def one(self) -> float:
        place = self._files.folder / "one.sock"
        with Guest(AIOVMM, aiovmm_command(self._files, f"socket={place}", mib=256), place) as guest:
            return settled([guest.pid])

    def qemus(self, count: int, machine: str) -> float:
        with ExitStack() as stack:
            return settled([stack.enter_context(self._qemu(number, machine)).pid for number in range(count)]) / count

    def _qemu(self, number: int, machine: str) -> Guest:
        place = self._files.folder / f"qemu{number}.sock"
        kind = MACHINES[architecture.host().name][machine]
        return Guest(
            machine, qemu_command(self._files, f"unix:{place},server=on,wait=on", mib=MIB, machine=kind), place
        )

    def floors(self, count: int) -> float:
        with ExitStack() as stack:
            return settled([stack.enter_context(Floor(self._floor)).pid for _ in range(count)]) / count


class Floor(AbstractContextManager["Floor"]):
    """One of the floor's, whose guest waits for a line that never comes."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "FLOOR_STAYS": "1"},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        deadline = time.monotonic() + BOOT
        while READY not in self._process.stdout.readline():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.__exit__()
                raise RuntimeError("the floor's guest did not come up")
        return self

    def __exit__(self, *_exc: object) -> None:
        with closing(self._process.stdout):  # type: ignore[type-var]
            self._process.kill()
            self._process.wait()


def settled(pids: Sequence[int]) -> float:
    """MiB of these processes, once their guests have come to rest."""
    time.sleep(SETTLE)
    return sum(map(proportional, pids)) / 1024


def proportional(pid: int) -> int:
    """KiB of a process: its own pages, and its share of others (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
