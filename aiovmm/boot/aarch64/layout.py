"""Where things lie in the guest-physical address space of an aarch64 guest. All addresses and sizes in bytes.

0x0000_0000  nothing (the reference has firmware's flash here, 4 MiB)
below 0x08FF_0000  ITS, and above it a redistributor for each vCPU
0x08FF_0000  GICv3 distributor
0x0900_0000  PL011, PL031, PL061, the VM generation
0x1000_0000  32-bit PCI memory, shared out among the segments
0x3000_0000  ECAM, 1 MiB a segment
0x4000_0000  RAM: device tree, kernel, ..., initramfs at the top
0xFC00_0000  a hole of 64 MiB, KVM's and the reference's
0x1_0000_0000  the rest of RAM, then the memory of devices, then 64-bit BARs

A guest finds all of it by its device tree; the map is the reference's, so that what was written down for one fits the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.errors import ConfigError, UsageError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["Gic", "end_of_ram", "gic_of", "ram_ranges"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * KIB

LOWEST = 4 * MIB
"""Nothing is below; firmware's flash would be."""
GIC_DISTRIBUTOR, GIC_DISTRIBUTOR_SIZE = 0x08FF0000, 0x10000
GIC_REDISTRIBUTOR_SIZE = 0x20000  # of one vCPU: RD_base and SGI_base, 64 KiB each (GICv3 and v4, 12.10)
GIC_ITS_SIZE = 0x20000  # control registers, then the page of GITS_TRANSLATER
ITS_TRANSLATER, TRANSLATER_SIZE = (
    0x10040,
    0x10000,
)  # from the ITS's base: where devices write messages to; its page's size

DEVICE_SIZE = 0x1000
UART, RTC, GPIO = 0x09000000, 0x09010000, 0x09020000
GENERATION, GENERATION_SIZE = 0x09030000, 0x10000
"""Memory that says which machine this is: up to a page of the host's, whatever size these have."""
BOARD_END = 0x09100000
"""From here to PCI's windows is nothing of the machine's."""
SPI_BASE = 32
"""The interrupt id of SPI 0: ids below are each processor's own."""
RTC_SPI, GPIO_SPI, GENERATION_SPI, UART_SPI = 0, 1, 2, 3
INTX_SPIS = range(16, 24)
"""Wires for the interrupt pins of PCI functions, which share them if there are more."""
MAINTENANCE_PPI, PMU_PPI = 9, 7
TIMER_PPIS = 13, 14, 11, 10
"""Secure physical, non-secure physical, virtual and hypervisor timer: KVM's own."""

PCI_MMIO32, PCI_MMIO32_SIZE = 0x10000000, 512 * MIB
ECAM, ECAM_SIZE = 0x30000000, 256 * MIB
ECAM_PER_SEGMENT = 1 * MIB  # bus 0 only: 32 devices, 8 functions, 4 KiB each

RAM = 0x40000000
RAM_LOW_END = 0xFC000000
RAM_ABOVE_4G = 0x1_0000_0000
FDT, FDT_MAX = RAM, 2 * MIB  # booting.rst: no more than 2 MiB, and in none of the kernel's own blocks of 2 MiB
KERNEL_BASE = FDT + FDT_MAX
KERNEL_ALIGNMENT = 2 * MIB

_SMALLEST = KERNEL_BASE + 2 * MIB - RAM


@dataclass(frozen=True)
class Gic:
    """Where the parts of the interrupt controller are; `redistributors` are one after the other, `vcpus` of them."""

    vcpus: int
    distributor: int
    redistributors: int
    its: int

    @property
    def redistributors_size(self) -> int:
        """Bytes of all redistributors."""
        return self.vcpus * GIC_REDISTRIBUTOR_SIZE

    @property
    def doorbell(self) -> int:
        """The address that devices send their messages to (GITS_TRANSLATER)."""
        return self.its + ITS_TRANSLATER


def gic_of(vcpus: int) -> Gic:
    """The interrupt controller of a machine with so many processors. Raises ConfigError if there is no room for it."""
    most = (GIC_DISTRIBUTOR - GIC_ITS_SIZE - LOWEST) // GIC_REDISTRIBUTOR_SIZE
    if not 1 <= vcpus <= most:
        raise ConfigError(
            "cpus.boot", f"{vcpus} vCPUs are not in 1..{most}, for which an interrupt controller has room"
        )
    redistributors = GIC_DISTRIBUTOR - vcpus * GIC_REDISTRIBUTOR_SIZE
    return Gic(vcpus, GIC_DISTRIBUTOR, redistributors, redistributors - GIC_ITS_SIZE)


def ram_ranges(size: int) -> list[tuple[int, int]]:
    """(gpa, size) of the RAM regions of a guest with `size` bytes of memory: 3,008 MiB below the hole, the rest from 4 GiB.

    Raises UsageError for a size that is not a multiple of 4 KiB or less than 4 MiB.
    """
    if size < _SMALLEST or size % PAGE:
        smallest = _SMALLEST // MIB
        raise UsageError(f"guest memory of {size} bytes: need at least {smallest} MiB and a multiple of 4 KiB")
    low = min(size, RAM_LOW_END - RAM)
    ranges = [(RAM, low)]
    if size > low:
        ranges.append((RAM_ABOVE_4G, size - low))
    return ranges


def end_of_ram(ranges: Sequence[tuple[int, int]]) -> int:
    """The first address after all RAM, and never below 4 GiB: where the memory of devices and 64-bit BARs may begin."""
    return max(RAM_ABOVE_4G, max(gpa + size for gpa, size in ranges))
