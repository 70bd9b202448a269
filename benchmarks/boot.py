"""From `vm.start()`, and from exec, to the first line of init: against a C floor and against QEMU. Boots stock kernels.

All boot the same Debian kernel and initramfs with 1 vCPU and 256 MiB, to the line "aiovmm: init". The floor and `vm.start()`
have two clocks each: one begins when there is no machine yet (the floor's main, the call of `vm.start()`), the other with the
guest's first instruction. Whole processes are timed from exec.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import uvloop

from aiovmm import VM, MemoryConfig, PayloadConfig, VMConfig, architecture
from benchmarks.floors import floor_command
from benchmarks.guest import Files, Word, aiovmm_command, qemu_command
from benchmarks.harness import Options, Result, Target, run_rounds

NESTED = True
MIB = 256
CMDLINE = f"console={architecture.host().serial} panic=-1" + (
    " reboot=k" if architecture.host() is architecture.X86_64 else ""
)
MACHINES = {  # QEMU's, by what the table calls them
    "x86_64": {"QEMU microvm": "microvm,rtc=on,isa-serial=on", "QEMU q35": "q35"},
    "aarch64": {"QEMU virt": "virt,gic-version=3"},
}
MARK = b"aiovmm: init"
LIMIT = 120.0  # seconds
FLOOR_LIMITS = (20.0, 20.0, 40.0)


def run(options: Options) -> Iterator[Result]:
    """Both rows."""
    with tempfile.TemporaryDirectory() as name:
        contest = Contest(options.release, Path(name))
        whole = Result("start to init", "s", "vm.start()", ("C floor",), Target(1.15))
        guest = Result("first instruction to init", "s", "vm.start()", ("C floor",), Target(1.15))
        if options.wants(whole.name) or options.wants(guest.name):
            try:
                run_rounds(whole, {"C floor": contest.floor, "vm.start()": contest.start}, options.rounds)
            except FloorLost as exc:
                print(f"{whole.name}, {guest.name}: left out, for {exc}", file=sys.stderr)
            else:
                whole.notes["exits"] = contest.exits
                guest.samples = contest.of_guests
                yield from (whole, guest)
        machines = MACHINES[architecture.host().name]
        outer = Result("exec to init", "s", "aiovmm run", tuple(machines), Target(0.8))
        if not options.wants(outer.name):
            return
        if shutil.which(architecture.host().emulator) is None:
            print(f"{outer.name}: left out, for there is no {architecture.host().emulator} here", file=sys.stderr)
            return
        peers = {name: partial(contest.qemu, machine) for name, machine in machines.items()}
        yield run_rounds(outer, {**peers, "aiovmm run": contest.aiovmm}, options.rounds)


class FloorLost(Exception):
    """There is nothing to compare with."""


class Contest:
    """The files that all contestants boot."""

    def __init__(self, release: str, directory: Path) -> None:
        self.files = Files(directory, release)
        self._floor = floor_command(self.files, MIB, CMDLINE)
        self.exits: dict[str, str] = {}
        self.of_guests: dict[str, list[float]] = {}  # seconds from the first instruction, of all rounds

    def floor(self) -> float:
        """Seconds from its main, as the floor itself says. An emulated AMD-V loses a guest now and then; the floor, which is no
        program of ours, may lose some. Raises FloorLost."""
        for limit in FLOOR_LIMITS:
            try:
                said = _floor(self._floor, limit)
                break
            except subprocess.TimeoutExpired:
                print("the floor's guest was lost", file=sys.stderr)
        else:
            raise FloorLost(f"the floor's guest was lost {len(FLOOR_LIMITS)} times")
        self._note("C floor", float(said["guest"]), said["exits"])
        return float(said["whole"])

    def _note(self, contestant: str, seconds: float, exits: str) -> None:
        self.of_guests.setdefault(contestant, []).append(seconds)
        self.exits[contestant] = exits

    def start(self) -> float:
        """Seconds from `vm.start()`."""
        return uvloop.run(self._start())

    async def _start(self) -> float:
        payload = PayloadConfig(self.files.kernel, self.files.initramfs, CMDLINE)
        async with VM(VMConfig(payload, memory=MemoryConfig(MIB << 20))) as vm:
            began = time.monotonic()
            await vm.start()
            ran = time.monotonic()
            await vm.serial.expect(MARK, timeout=LIMIT)
            now = time.monotonic()
            self._note("vm.start()", now - ran, exits(vm))
            await vm.kill()
        return now - began

    def aiovmm(self) -> float:
        """Seconds of the whole `aiovmm run`, from exec."""
        return from_exec(aiovmm_command(self.files, "tty", mib=MIB, cmdline=CMDLINE), MARK)

    def qemu(self, machine: str) -> float:
        """The same of a machine of QEMU's."""
        return from_exec(qemu_command(self.files, "stdio", mib=MIB, cmdline=CMDLINE, machine=machine), MARK)


def _floor(command: Sequence[Word], limit: float) -> dict[str, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit)
    said = re.search(r"floor: (?P<guest>\S+) s of (?P<whole>\S+) s, (?P<exits>\d+) exits", done.stderr)
    if said is None:
        raise RuntimeError(f"the floor ended without its times: {done.stdout[-500:]!r} {done.stderr[-500:]!r}")
    return said.groupdict()


def exits(vm: VM) -> str:
    """How many exits a guest has made and how they were answered."""
    counters = [vcpu.counters for vcpu in vm.machine.vcpus]
    total = sum(c.exits for c in counters)
    ways = ("sync", "posted", "shadow", "ignored", "missed")
    kinds = {way: sum(getattr(c, way) for c in counters) for way in ways}
    return f"{total}: " + ", ".join(f"{number} {kind} ({100 * number / total:.1f}%)" for kind, number in kinds.items())


def from_exec(command: Sequence[Word], mark: bytes) -> float:
    """Seconds from the start of a process until it has printed `mark`; then it is killed. Raises RuntimeError if it ends before,
    or is ended after LIMIT."""
    began = time.monotonic()
    words = [str(word) for word in command]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        late = threading.Timer(LIMIT, process.kill)
        late.start()
        seen = b""
        while mark not in seen:
            data = process.stdout.read1(65536)  # type: ignore[attr-defined]
            if not data:
                late.cancel()
                raise RuntimeError(
                    f"{words[0]} ended, or was ended after {LIMIT:g} s: {seen[-500:]!r} {process.stderr.read()[-500:]!r}"
                )
            seen = seen[-64:] + data
        took = time.monotonic() - began
        late.cancel()
        process.kill()
    return took
