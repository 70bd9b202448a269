"""Where things lie in the guest-physical address space of an x86-64 guest. All addresses and sizes in bytes.

0x0000_0500  GDT, IDT, PVH start info, zero page, boot page tables, command line (all below 640 KiB)
0x000A_0000  RSDP and the ACPI tables, then the BIOS area with MP table and SMBIOS (never offered as RAM)
0x0010_0000  RAM: kernel, ..., initrd at the top of low RAM
0xC000_0000  32-bit MMIO window, ECAM, I/O APIC, local APIC: the PCI hole
0x1_0000_0000  the rest of RAM, then 64-bit BARs
"""

from __future__ import annotations

from aiovmm.errors import UsageError

__all__ = ["ram_ranges"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * KIB

GDT = 0x500
IDT = 0x540
PVH_START_INFO = 0x6000
PVH_MODULES = 0x6040
PVH_MEMMAP = 0x6100
ZERO_PAGE = 0x7000
BOOT_STACK = 0x8FF0
PML4 = 0x9000
PDPT = 0xA000
PAGE_DIRECTORIES = 0xB000  # four of them: 2 MiB pages over the first 4 GiB
CMDLINE = 0x20000
CMDLINE_MAX = 64 * KIB
LOW_RAM_END = 0xA0000  # what follows was the EBDA, video memory and BIOS of a PC
RSDP = 0xA0000
VM_GENERATION = 0xA0030  # 16 bytes that differ in each guest that goes on from a snapshot
ACPI_TABLES = 0xA0040  # the RSDP is 36 bytes; tables are aligned to 64 for the reader's sake
ACPI_TABLES_END = 0xF0000
MP_TABLE = 0xF0000  # the BIOS area, where it is looked for; 255 processors need 6 KiB
SMBIOS = 0xF4000  # its entry point, and then its structures
SMBIOS_END = 0x100000
HIGH_RAM = 0x100000
BOOT_AREAS = ((GDT, CMDLINE + CMDLINE_MAX), (LOW_RAM_END, HIGH_RAM))
"""(start, end) of what is written around a kernel, where it can have no segment."""

MMIO32 = 0xC0000000
MMIO32_SIZE = 640 * MIB
ECAM = 0xE8000000
ECAM_SIZE = 256 * MIB
ECAM_PER_SEGMENT = 1 * MIB  # bus 0 only: 32 devices, 8 functions, 4 KiB each
KVM_TSS = 0xFFFBD000  # three pages for KVM_SET_TSS_ADDR; the identity map page follows them
KVM_IDENTITY_MAP = 0xFFFBC000
IOAPIC = 0xFEC00000
LAPIC = 0xFEE00000
RAM_ABOVE_4G = 0x1_0000_0000

_SMALLEST = 2 * MIB


def ram_ranges(size: int) -> list[tuple[int, int]]:
    """(gpa, size) of the RAM regions of a guest with `size` bytes of memory: below the PCI hole, the rest from 4 GiB.

    Raises UsageError for a size that is not a multiple of 4 KiB or less than 2 MiB.
    """
    if size < _SMALLEST or size % PAGE:
        raise UsageError(f"guest memory of {size} bytes: need at least 2 MiB and a multiple of 4 KiB")
    low = min(size, MMIO32)
    ranges = [(0, low)]
    if size > low:
        ranges.append((RAM_ABOVE_4G, size - low))
    return ranges


def end_of_ram(ranges: list[tuple[int, int]]) -> int:
    """The first address after all RAM, and never inside the PCI hole: where 64-bit BARs may begin."""
    return max(RAM_ABOVE_4G, max(gpa + size for gpa, size in ranges))
