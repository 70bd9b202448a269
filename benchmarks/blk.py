"""Disk requests and bytes per second in a guest, by fio, against QEMU. Runs where stock kernels do.

    python -m benchmarks --nested blk [--rounds 5] [--seconds 4] [--json] [--release 6.1] [--jobs randread-1,read-1m]

Both monitors get the same kernel, initramfs and image (256 MiB of random data on the host's file system), 1 vCPU and 512 MiB;
QEMU is q35 with virtio-blk-pci, an iothread and io_uring. A round boots each of them once for each cache mode, and fio runs all
jobs in turn, each with O_DIRECT in the guest: "cached" is served from the host's page cache, "direct" is O_DIRECT on the host.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from aiovmm.image import build_initramfs
from benchmarks.harness import Result

GUESTS = Path("/guest")
MIB = 512
IMAGE_MIB = 256
CMDLINE = "console=ttyS0 panic=-1 reboot=k quiet"
JOBS = {
    "randread-1": ("IOPS", "--rw=randread --bs=4k --iodepth=1"),
    "randread-32": ("IOPS", "--rw=randread --bs=4k --iodepth=32"),
    "randwrite-32": ("IOPS", "--rw=randwrite --bs=4k --iodepth=32"),
    "read-1m": ("MiB/s", "--rw=read --bs=1m --iodepth=8"),
    "write-1m": ("MiB/s", "--rw=write --bs=1m --iodepth=8"),
}
_RESULT = re.compile(rb"result (\S+) (\S+) (\S+) (\S+) (\S+)")


def script(jobs: list[str], seconds: int) -> str:
    """What the guest runs. fio's terse line, version 3: fields 7 and 8 are KiB/s and IOPS of reads, 48 and 49 of writes."""
    common = f"--filename=/dev/vda --direct=1 --ioengine=io_uring --runtime={seconds} --time_based --minimal"
    lines = ["exec 2>&1"]
    for job in jobs:
        fio = f"/bin/fio --name={job} {JOBS[job][1]} {common}"
        lines.append(f"echo result {job} $({fio} | cut -d ';' -f 7,8,48,49 | tr ';' ' ')")
    return "\n".join(lines)


class Contest:
    """The files that both monitors use."""

    def __init__(self, release: str, folder: Path, jobs: list[str], seconds: int) -> None:
        self.kernel = GUESTS / release / "vmlinuz"
        self.initramfs = folder / "initramfs.cpio"
        self.image = folder / "image"
        files: dict[str, str | os.PathLike[str] | bytes] = {"/bin/fio": GUESTS / "bin/fio"}
        run = script(jobs, seconds)
        modules = GUESTS / release / "modules"
        busybox = GUESTS / "bin/busybox"
        self.initramfs.write_bytes(build_initramfs(busybox=busybox, modules=modules, files=files, run=run).data)
        with self.image.open("wb") as file:
            for _ in range(IMAGE_MIB):
                file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())

    def aiovmm(self, direct: bool) -> dict[str, float]:
        """One boot of ours."""
        payload = ["--kernel", self.kernel, "--initramfs", self.initramfs, "--cmdline", CMDLINE]
        disk = f"path={self.image},direct={'on' if direct else 'off'}"
        return self._run(["aiovmm", "run", *payload, "--memory", f"{MIB}M", "--serial", "tty", "--disk", disk])

    def qemu(self, direct: bool) -> dict[str, float]:
        """One boot of QEMU's."""
        command = ["qemu-system-x86_64", "-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", MIB, "-nodefaults"]
        command += [
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
            "-kernel",
            self.kernel,
            "-initrd",
            self.initramfs,
        ]
        cache = "none" if direct else "writeback"
        command += ["-append", CMDLINE, "-object", "iothread,id=io", "-device", "virtio-blk-pci,drive=d,iothread=io"]
        return self._run([*command, "-drive", f"file={self.image},if=none,id=d,format=raw,cache={cache},aio=io_uring"])

    def _run(self, command: list[object]) -> dict[str, float]:
        words = [str(word) for word in command]
        self.image.read_bytes()  # in the page cache, for both alike
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False)
        found = {}
        for name, *numbers in _RESULT.findall(done.stdout):
            kib, iops = (max(float(numbers[i]), float(numbers[i + 2])) for i in (0, 1))
            job = name.decode()
            found[job] = iops if JOBS[job][0] == "IOPS" else kib / 1024
        if not found:
            raise RuntimeError(f"{words[0]} printed no results: {done.stdout[-1000:]!r} {done.stderr[-1000:]!r}")
        return found


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks blk", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--release", default="6.1")
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--modes", default="cached,direct")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    jobs = args.jobs.split(",")
    results: dict[tuple[str, str], Result] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # not a tmpfs, which refuses O_DIRECT
        contest = Contest(args.release, Path(name), jobs, args.seconds)
        for number in range(args.rounds):
            for mode in args.modes.split(","):
                for contestant, measure in (("QEMU q35", contest.qemu), ("aiovmm", contest.aiovmm)):
                    found = measure(mode == "direct")
                    print(f"round {number + 1}/{args.rounds}: {mode}: {contestant}: {found}", file=sys.stderr)
                    for job, value in found.items():
                        result = Result(f"{job} {mode}", JOBS[job][0], "QEMU q35")
                        results.setdefault((job, mode), result).samples.setdefault(contestant, []).append(value)
    for result in results.values():
        print(result.as_json() if args.json else result.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
