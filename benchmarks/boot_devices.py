"""From exec to a mounted root disk, with five virtio devices on PCI: against QEMU q35; and what the exits of that boot wait for.

Disk, network, entropy, vsock and console, each with its driver loaded by init from the initramfs, which then mounts the disk and
starts the init that is on it. Boots stock kernels.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import uvloop

from aiovmm import (
    VM,
    ConsoleConfig,
    ConsoleMode,
    DiskConfig,
    MemoryConfig,
    NetConfig,
    PayloadConfig,
    VMConfig,
    VsockConfig,
)
from benchmarks.boot import LIMIT, MIB, exits, from_exec
from benchmarks.guest import AIOVMM, QEMU, Files, aiovmm_command, qemu_command
from benchmarks.harness import Options, Result, Target, run_rounds
from benchmarks.network import own_network
from benchmarks.place import GUESTS

NESTED = True
CID = 78
MARK = b"benchmark: root"
CMDLINE = "console=ttyS0 panic=-1 reboot=k root=/dev/vda rootfstype=ext4 init=/init"
_INIT = f"#!/bin/sh\necho '{MARK.decode()}'\nexec /bin/sleep 1000\n"


def run(options: Options) -> Iterator[Result]:
    """Both rows."""
    with own_network(), tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        contest = Contest(Path(name), options.release)
        row = Result("exec to a mounted root, 5 devices", "s", AIOVMM, (QEMU,), Target(0.8))
        if options.wants(row.name):
            yield run_rounds(row, {QEMU: contest.qemu, AIOVMM: contest.aiovmm}, options.rounds)
        waits = Result("exits of that boot that wait", "%", AIOVMM, (), Target(plus=10))
        if options.wants(waits.name):
            run_rounds(waits, {AIOVMM: contest.waits}, min(options.rounds, 3))
            waits.notes |= {"exits": contest.exits, "those that wait": contest.where}
            yield waits


def make_root(folder: Path) -> Path:
    """An ext4 image with a busybox and an init that says when it runs."""
    root, image = folder / "root", folder / "root.img"
    for directory in ("bin", "dev", "proc", "sys", "run", "tmp"):
        (root / directory).mkdir(parents=True)
    (root / "bin/busybox").write_bytes((GUESTS / "bin/busybox").read_bytes())
    for applet in ("sh", "sleep"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "init").write_text(_INIT)
    for file in (root / "init", root / "bin/busybox"):
        file.chmod(0o755)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, image, "64M"], check=True, timeout=60)
    return image


class Contest:
    """The files that both boot."""

    def __init__(self, folder: Path, release: str) -> None:
        self.files = Files(folder, release)
        self.image = make_root(folder)
        self.exits = self.where = ""

    def aiovmm(self) -> float:
        """Seconds of `aiovmm run`; its entropy device is always there."""
        devices = ["--disk", f"path={self.image}", "--net", "tap=ours", "--console", "null", "--vsock", f"cid={CID}"]
        return from_exec(aiovmm_command(self.files, "tty", devices, mib=MIB, cmdline=CMDLINE), MARK)

    def qemu(self) -> float:
        """The same of QEMU."""
        devices = ["-drive", f"file={self.image},if=none,id=d,format=raw,aio=io_uring", "-object", "iothread,id=io"]
        devices += ["-device", "virtio-blk-pci,drive=d,iothread=io", "-device", "virtio-rng-pci"]
        devices += ["-netdev", "tap,id=n,ifname=theirs,script=no,downscript=no,vhost=off"]
        devices += ["-device", "virtio-net-pci,netdev=n,romfile=", "-device", f"vhost-vsock-pci,guest-cid={CID}"]
        devices += ["-device", "virtio-serial-pci", "-chardev", "null,id=c", "-device", "virtconsole,chardev=c"]
        return from_exec(qemu_command(self.files, "stdio", devices, mib=MIB, cmdline=CMDLINE), MARK)

    def waits(self) -> float:
        """Of 100 exits of a boot, how many wait for the event loop."""
        return uvloop.run(self._waits())

    async def _waits(self) -> float:
        config = VMConfig(
            PayloadConfig(self.files.kernel, self.files.initramfs, CMDLINE),
            memory=MemoryConfig(MIB << 20),
            console=ConsoleConfig(ConsoleMode.NULL),
            disks=(DiskConfig(path=self.image),),
            nets=(NetConfig(tap="ours"),),
            vsock=VsockConfig(cid=CID),
        )
        async with VM(config) as vm:
            await vm.start()
            await vm.serial.expect(MARK, timeout=LIMIT)
            counters = [vcpu.counters for vcpu in vm.machine.vcpus]
            self.exits = exits(vm)
            self.where = waiting(vm)
            await vm.kill()
        return 100 * sum(c.sync for c in counters) / sum(c.exits for c in counters)


def waiting(vm: VM) -> str:
    """The ranges of the bus whose accesses waited most."""
    counts: Counter[str] = Counter()
    for rng in vm.machine.bus.ranges():
        counts[rng.name] += vm.machine.kvm_vm.range_counts(rng).sync
    return ", ".join(f"{name} {number}" for name, number in counts.most_common(8) if number)
