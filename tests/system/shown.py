"""What a stock guest shows of the machine that it is on, by architecture."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from tests.kvmhost.arch import AARCH64, ARCHES, X86_64

__all__ = ["CONSOLE", "KEEPS_TIME", "SHOWN", "WAITS_FOR_IOMMU", "with_button", "with_dax"]

_HERE = ARCHES[platform.machine()]
CONSOLE = _HERE.console
WAITS_FOR_IOMMU = f"console={CONSOLE} panic=-1 quiet deferred_probe_timeout=300"
"""A kernel's command line: where a device tree tells of the IOMMU drivers wait for its driver, by themselves for ten seconds,
which may not be enough here, and then pass it by."""
KEEPS_TIME = ("invtsc",) if _HERE is X86_64 else ()
"""Features of processors by whose counters a guest keeps its time over a gap also in the nested host, whose own the emulator does
not call invariant. None: a guest that was at work is behind by the gap."""


@dataclass(frozen=True)
class Shown:
    clock: str  # in the kernel's log
    pin: str  # of /proc/interrupts: what a level comes by
    message: str  # and a message, in some of the kernels
    high_memory: str  # of 5 GiB, the last line of RAM in /proc/iomem
    low_end: int  # below which the other lines are
    told_of_iommu: str  # a command that fails where the kernel is not told of one
    hotplug: bool  # devices can come to a guest that runs


SHOWN = {
    X86_64.name: Shown("kvm-clock", "IO-APIC", "PCI-MSI", "100000000-17fffffff", 3 << 30, "dmesg | grep VIOT", True),
    AARCH64.name: Shown(
        "arch_sys_counter",
        "GICv3",
        "ITS-MSI",
        "100000000-183ffffff",
        0xFC000000,
        "find /proc/device-tree/ -name iommu-map | grep iommu-map",
        False,
    ),
}[_HERE.name]


def with_button(release: str) -> str:
    """The kernel that heeds the power button: arm64's kernels for clouds have no driver for one that is a GPIO's key."""
    return release if _HERE == X86_64 else "full"


def with_dax(release: str) -> str:
    """The kernel that maps files on pmem: arm64's of 6.1 do not (CONFIG_ZONE_DEVICE)."""
    return "6.12" if release == "6.1" and _HERE != X86_64 else release
