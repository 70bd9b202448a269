"""Disk requests and bytes per second in a guest, by fio, against QEMU with an iothread and io_uring. Boots stock kernels.

Each monitor's guest has two disks with 256 MiB of the same random data on the host's file system. fio reads and writes with
O_DIRECT in the guest: "cached" is served from the host's page cache, "direct" is O_DIRECT on the host too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.guest import AIOVMM, QEMU, Files, Guest, Word, both, compare
from benchmarks.harness import Options, Result, Target
from benchmarks.place import GUESTS

NESTED = True
MODES = {"cached": "vda", "direct": "vdb"}
IMAGE_MIB = 256
_BANDWIDTH, _IOPS = 7, 8  # fields of fio's terse line, version 3, for reads; those for writes are 41 further on
_WRITES = 41

JOBS = {
    "4 KiB random read, depth 1": ("IOPS", Target(0.8, most=False), "--rw=randread --bs=4k --iodepth=1"),
    "4 KiB random read, depth 32": ("IOPS", Target(1.0, most=False), "--rw=randread --bs=4k --iodepth=32"),
    "4 KiB random write, depth 32": ("IOPS", None, "--rw=randwrite --bs=4k --iodepth=32"),
    "1 MiB read": ("MiB/s", Target(1.0, most=False), "--rw=read --bs=1m --iodepth=8"),
    "1 MiB write": ("MiB/s", Target(1.0, most=False), "--rw=write --bs=1m --iodepth=8"),
}


def make_images(folder: Path, monitor: str) -> dict[str, Path]:
    """One image a mode."""
    images = {mode: folder / f"{monitor}-{mode}" for mode in MODES}
    master = folder / "master"
    if not master.exists():
        with master.open("wb") as file:
            for _ in range(IMAGE_MIB):
                file.write(os.urandom(1 << 20))
    for image in images.values():
        shutil.copy(master, image)
    return images


def qemu_disks(images: dict[str, Path]) -> list[Word]:
    """Options."""
    words: list[Word] = ["-object", "iothread,id=io"]
    for mode, image in images.items():
        cache = "none" if mode == "direct" else "writeback"
        words += ["-drive", f"file={image},if=none,id={mode},format=raw,cache={cache},aio=io_uring"]
        words += ["-device", f"virtio-blk-pci,drive={mode},iothread=io"]
    return words


def aiovmm_disks(images: dict[str, Path]) -> list[Word]:
    """Options."""
    words: list[Word] = []
    for mode, image in images.items():
        words += ["--disk", f"path={image},direct={'on' if mode == 'direct' else 'off'}"]
    return words


def run(options: Options) -> Iterator[Result]:
    """Each job, cached and direct."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # not a tmpfs, which refuses O_DIRECT
        folder = Path(name)
        files = Files(folder, options.release, {"/bin/fio": GUESTS / "bin/fio"})
        devices = aiovmm_disks(make_images(folder, "aiovmm")), qemu_disks(make_images(folder, "qemu"))
        os.sync()
        qemu, aiovmm = both(files, *devices)
        with qemu, aiovmm:
            for name in JOBS:
                for mode in MODES:
                    if options.wants(f"{name}, {mode}"):
                        yield measure(name, mode, (qemu, aiovmm), options)


def measure(job: str, mode: str, guests: tuple[Guest, ...], options: Options) -> Result:
    """One row."""
    unit, target, arguments = JOBS[job]
    field = (_IOPS if unit == "IOPS" else _BANDWIDTH) + (_WRITES if "write" in arguments else 0)
    common = f"--name=job --filename=/dev/{MODES[mode]} --direct=1 --ioengine=io_uring --time_based --minimal"
    fio = f"fio {common} --runtime={options.pick(2, 1)} {arguments}"
    command = f"echo result $({fio} | cut -d ';' -f {field})"
    per_unit = 1 if unit == "IOPS" else 1024  # fio's bandwidth is in KiB
    row = Result(f"{job}, {mode}", unit, AIOVMM, (QEMU,), target)
    return compare(row, guests, lambda guest: guest.result(command) / per_unit, options)
