"""From `vm.start()`, and from exec, to the first line of init: against a C floor and against QEMU. Runs where stock kernels do.

    python -m benchmarks --nested boot [--rounds 5] [--json] [--release 6.1]

All boot the same Debian kernel and initramfs with 1 vCPU and 256 MiB, to the line "aiovmm: init". The floor and `vm.start()`
are timed from the first instruction; whole processes from exec.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from aiovmm import VM, MemoryConfig, PayloadConfig, VMConfig
from aiovmm.boot import load_kernel
from aiovmm.image import build_initramfs
from benchmarks.harness import Result, run_rounds

GUESTS = Path("/guest")
MIB = 256
CMDLINE = "console=ttyS0 panic=-1 reboot=k"
MARK = b"aiovmm: init"
QEMU = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", str(MIB), "-nodefaults", "-display", "none"]
QEMU += ["-no-reboot", "-serial", "stdio"]


def build_floor(directory: Path) -> Path:
    """The C floor, compiled; where there is no compiler, the one that `--nested` brought along (AIOVMM_FLOOR)."""
    if "AIOVMM_FLOOR" in os.environ:
        return Path(os.environ["AIOVMM_FLOOR"])
    binary = directory / "floor"
    subprocess.run(["gcc", "-O2", "-static", "-o", binary, Path(__file__).with_name("floor.c")], check=True)
    return binary


class Contest:
    """The files that all contestants boot."""

    def __init__(self, release: str, directory: Path) -> None:
        self.kernel = GUESTS / release / "vmlinuz"
        self.initramfs = directory / "initramfs.cpio"
        self.initramfs.write_bytes(
            build_initramfs(busybox=GUESTS / "bin/busybox", modules=GUESTS / release / "modules", run="true").data
        )
        image = load_kernel(self.kernel)
        self.vmlinux = directory / "vmlinux"
        view = memoryview(bytearray(image.source.size))
        image.source.read_into([(0, view)])
        self.vmlinux.write_bytes(view)
        self.floor_binary = build_floor(directory)
        self.exits: dict[str, float] = {}

    def floor(self) -> float:
        """Seconds from the first instruction, as the floor itself says."""
        command = [self.floor_binary, self.vmlinux, self.initramfs, str(MIB), CMDLINE]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True, timeout=120)
        return float(done.stderr.split("floor: ")[1].split(" s")[0])

    def start(self) -> float:
        """Seconds from `vm.start()`."""
        return uvloop.run(self._start())

    async def _start(self) -> float:
        config = VMConfig(PayloadConfig(self.kernel, self.initramfs, CMDLINE), memory=MemoryConfig(MIB << 20))
        async with VM(config) as vm:
            began = time.monotonic()
            await vm.start()
            await vm.serial.expect(MARK, timeout=120)
            took = time.monotonic() - began
            counters = [vcpu.counters for vcpu in vm.machine.vcpus]
            exits = sum(c.exits for c in counters)
            self.exits = {"exits": exits, "waited": sum(c.sync for c in counters)}
            await vm.kill()
        return took

    def aiovmm(self) -> float:
        """Seconds of the whole `aiovmm run`, from exec."""
        command = ["aiovmm", "run", "--kernel", str(self.kernel), "--initramfs", str(self.initramfs)]
        return self._process([*command, "--cmdline", CMDLINE, "--memory", f"{MIB}M", "--serial", "tty"])

    def microvm(self) -> float:
        """The same of QEMU's smallest machine."""
        machine = ["-M", "microvm,rtc=on,isa-serial=on"]
        return self._process([*QEMU, *machine, *self._qemu_payload()])

    def q35(self) -> float:
        """The same of QEMU's usual machine."""
        return self._process([*QEMU, "-M", "q35", *self._qemu_payload()])

    def _qemu_payload(self) -> list[str]:
        return ["-kernel", str(self.kernel), "-initrd", str(self.initramfs), "-append", CMDLINE]

    def _process(self, command: list[str]) -> float:
        began = time.monotonic()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
            assert p.stdout is not None
            seen = b""
            while MARK not in seen:
                data = p.stdout.read1(65536)  # type: ignore[attr-defined]
                if not data:
                    assert p.stderr is not None
                    raise RuntimeError(f"{command[0]} ended early: {seen[-500:]!r} {p.stderr.read()[-500:]!r}")
                seen = seen[-64:] + data
            took = time.monotonic() - began
            p.kill()
        return took


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks boot", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--release", default="6.1")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        contest = Contest(args.release, Path(name))
        inner = Result("start to init", "s", "C floor")
        run_rounds(inner, {"C floor": contest.floor, "vm.start()": contest.start}, args.rounds)
        exits = contest.exits
        inner.notes["exits"] = (
            f"{exits['exits']:.0f}, of which {100 * exits['waited'] / exits['exits']:.1f}% waited for the loop"
        )
        outer = Result("exec to init", "s", "QEMU microvm")
        contestants = {"QEMU microvm": contest.microvm, "QEMU q35": contest.q35, "aiovmm run": contest.aiovmm}
        run_rounds(outer, contestants, args.rounds)
    for result in (inner, outer):
        print(result.as_json() if args.json else result.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
