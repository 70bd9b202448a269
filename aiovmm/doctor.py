"""What this machine can do for guests, and what to do about what it cannot. Looks, and changes nothing.

`examine()` returns one `Finding` a question, in the order in which a person would ask them. Blocking, well under a second.
"""

from __future__ import annotations

import enum
import os
import platform
import resource
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiovmm import architecture
from aiovmm.errors import AiovmmError, HostError
from aiovmm.kvm import Kvm

__all__ = ["Finding", "Verdict", "examine"]

FDS_PER_GUEST = 16  # a small guest's: VM, vCPU, memory, exit eventfd, and a device with its doorbells and interrupts
SET_UP = ("12", "13")  # the releases of Debian that tools/setup is for
_MANY_GUESTS = 100


class Verdict(enum.Enum):
    """How a question was answered."""

    OK = "ok"
    LIMITED = "limited"  # works, but less than it could
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """`question` in a word or two, what was found, and what to do about it (empty when nothing is to be done)."""

    question: str
    verdict: Verdict
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "verdict": self.verdict.value}


def examine(kvm_path: str = "/dev/kvm") -> list[Finding]:
    """All findings. Never raises for what a machine lacks."""
    findings = [_system(), _distribution()]
    findings += _kvm(kvm_path)
    findings += _nested()
    findings += [_files(), _memory(), _hugepages(), _tap(), _io_uring(), _vfio(), _initramfs_tools()]
    return findings


def _system() -> Finding:
    release, machine = platform.release(), architecture.name_of_host()
    found = f"Linux {release} on {machine}, Python {platform.python_version()}, {os.cpu_count()} processors"
    try:
        architecture.host()
    except HostError as exc:
        return Finding("system", Verdict.MISSING, found, exc.hint)
    return Finding("system", Verdict.OK, found)


def _distribution() -> Finding:
    try:
        known = platform.freedesktop_os_release()
    except OSError:
        known = {"PRETTY_NAME": "an unnamed distribution"}
    name = known.get("PRETTY_NAME") or known["NAME"]
    if known.get("ID") == "debian" and known.get("VERSION_ID") in SET_UP:
        return Finding("distribution", Verdict.OK, f"{name}: `make demo` and `make test` set up what they need")
    remedy = f"`make demo` and `make test` are tried on Debian {' and '.join(SET_UP)}; tools/setup lists the packages they need"
    return Finding("distribution", Verdict.LIMITED, f"{name}: guests run, the rest is for you to set up", remedy)


def _kvm(path: str) -> Iterator[Finding]:
    try:
        kvm = Kvm.open(path)
    except HostError as exc:
        yield Finding("kvm", Verdict.MISSING, str(exc), exc.hint or "see `dmesg | grep -i kvm`")
        return
    with kvm:
        yield Finding("kvm", Verdict.OK, f"{path}: usable, up to {kvm.max_vcpus} vCPUs a guest, all capabilities there")
        for lacking, remedy in kvm.shortcomings():
            yield Finding("kvm", Verdict.MISSING, lacking, remedy)
        try:
            emulates = kvm.emulates_guest_code()
        except AiovmmError as exc:
            yield Finding(
                "guest code", Verdict.MISSING, f"a tiny guest does not run: {exc}", "see `dmesg | grep -i kvm`"
            )
            return
    if emulates:
        yield Finding(
            "guest code",
            Verdict.LIMITED,
            "this KVM runs guest kernel code in its instruction emulator: bare-metal test guests run, stock kernels do not",
            "run on a machine whose processor virtualizes (or nested virtualization); `make demo` uses a nested host meanwhile",
        )
    else:
        yield Finding("guest code", Verdict.OK, "runs on the processor: stock kernels boot")


def _nested() -> Iterator[Finding]:
    try:
        mine = architecture.host()
    except HostError:
        return
    if shutil.which(mine.emulator):
        yield Finding(
            "nested host", Verdict.OK, f"{mine.emulator} is there: tests and demo can make a KVM of their own"
        )
        return
    remedy = f"apt-get install {mine.emulator_package} (only for tests and the demo without a full KVM)"
    yield Finding("nested host", Verdict.LIMITED, f"no {mine.emulator}", remedy)


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    guests = max(soft - 64, 0) // FDS_PER_GUEST
    found = f"{soft} open files allowed (hard limit {hard}): about {guests} small guests in one process"
    if guests >= _MANY_GUESTS:
        return Finding("file descriptors", Verdict.OK, found)
    remedy = f"raise it: `ulimit -n {min(hard, 20000) if hard > soft else 20000}`, or LimitNOFILE= in the service"
    return Finding("file descriptors", Verdict.LIMITED, found, remedy)


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in KiB (or pages, as it says)."""
    rows = (line.split() for line in _lines("/proc/meminfo"))
    return {row[0].rstrip(":"): int(row[1]) for row in rows}


def _lines(path: str) -> list[str]:
    """None where it cannot be read, as in a chroot without /proc."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _memory() -> Finding:
    info = _meminfo()
    if not info:
        remedy = "for this report, and for what the host's devices and disks are asked: `mount -t proc proc /proc`"
        return Finding("memory", Verdict.LIMITED, "/proc/meminfo cannot be read", remedy)
    available = info.get("MemAvailable", 0) >> 10
    found = f"{available} MiB available"
    if available < 512:
        return Finding("memory", Verdict.LIMITED, found, "a stock guest wants 128 to 512 MiB: free some")
    return Finding("memory", Verdict.OK, found)


def _hugepages() -> Finding:
    info = _meminfo()
    free, size = info.get("HugePages_Free", 0), info.get("Hugepagesize", 0)
    if free:
        return Finding("huge pages", Verdict.OK, f"{free} free, {size >> 10} MiB each")
    remedy = "for --memory hugepages=on: `sysctl vm.nr_hugepages=N`"
    return Finding("huge pages", Verdict.LIMITED, "none reserved", remedy)


def _device(question: str, path: str, good: str, module: str, why: str) -> Finding:
    if not os.path.exists(path):
        return Finding(question, Verdict.LIMITED, f"{path} does not exist", f"`modprobe {module}` {why}")
    if not os.access(path, os.R_OK | os.W_OK):
        return Finding(question, Verdict.LIMITED, f"{path}: no permission", f"run as root or change its group {why}")
    return Finding(question, Verdict.OK, good)


def _tap() -> Finding:
    finding = _device("network", "/dev/net/tun", "/dev/net/tun is usable", "tun", "(for --net with a TAP)")
    if finding.verdict is Verdict.OK and not _has_net_admin():
        remedy = "give a TAP made beforehand (`ip tuntap add`), a file descriptor, or CAP_NET_ADMIN"
        return Finding("network", Verdict.LIMITED, "no CAP_NET_ADMIN: TAPs cannot be made here", remedy)
    return finding


def _has_net_admin() -> bool:
    rows = [line.split() for line in _lines("/proc/self/status") if line.startswith("CapEff")]
    return bool(rows) and bool(int(rows[0][1], 16) >> 12 & 1)  # CAP_NET_ADMIN is 12


def _io_uring() -> Finding:
    if _lines("/proc/sys/kernel/io_uring_disabled")[:1] in ([], ["0"]):
        return Finding("io_uring", Verdict.OK, "allowed")
    return Finding(
        "io_uring",
        Verdict.LIMITED,
        "refused by the kernel's setting: disks use a thread pool",
        "`sysctl kernel.io_uring_disabled=0`",
    )


def _vfio() -> Finding:
    groups = len(list(Path("/sys/kernel/iommu_groups").glob("*"))) if Path("/sys/kernel/iommu_groups").exists() else 0
    ways = [path for path in ("/dev/vfio/vfio", "/dev/iommu") if os.path.exists(path)]
    if groups and ways:
        return Finding("device assignment", Verdict.OK, f"{groups} IOMMU groups; there is {' and '.join(ways)}")
    found = f"{groups} IOMMU groups" + ("" if ways else ", no /dev/vfio/vfio")
    remedy = "for --device: IOMMU on in firmware (Intel's or AMD's: intel_iommu=on or amd_iommu=on as well), `modprobe vfio-pci`"
    return Finding("device assignment", Verdict.LIMITED, found, remedy)


def _initramfs_tools() -> Finding:
    if shutil.which("busybox"):
        return Finding("guest images", Verdict.OK, "busybox is there")
    return Finding("guest images", Verdict.LIMITED, "no busybox", "apt-get install busybox-static (else it is fetched)")
