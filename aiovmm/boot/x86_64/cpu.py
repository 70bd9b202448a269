"""The state of the boot processor at the kernel's first instruction, as plain data.

Two ways in. *Linux 64-bit* (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"): long mode, paging on with the first
4 GiB identity-mapped, __BOOT_CS 0x10, __BOOT_DS 0x18, rsi = zero page, interrupts off. *PVH* (Xen docs/misc/pvh.pandoc,
"PVH Guest Loading"): 32-bit protected mode, paging off, flat segments, ebx = hvm_start_info. Application processors need
nothing of this: they come out of reset into wait-for-SIPI, and the kernel starts them itself.
"""

from __future__ import annotations

import struct
from functools import cache

from aiovmm.boot.x86_64 import layout
from aiovmm.memory import GuestMemory
from aiovmm.runtime.dataclass import dataclass

__all__ = ["CpuState", "DescriptorTable", "Segment", "boot_msrs", "linux64_state", "pvh_state"]

CR0_PE, CR0_ET, CR0_PG = 1 << 0, 1 << 4, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
_PRESENT_WRITABLE, _PAGE_SIZE_BIT = 0x3, 1 << 7
_RFLAGS_RESERVED = 0x2  # bit 1 always reads one; IF stays clear

BOOT_CS, BOOT_DS, BOOT_TR = 0x10, 0x18, 0x20
_CODE_EXEC_READ, _DATA_READ_WRITE, _TSS_BUSY = 0xB, 0x3, 0xB  # Intel SDM vol. 3A, 3.4.5.1 and 3.5


@dataclass(frozen=True)
class Segment:
    """A segment register with its hidden part; names and meanings of `struct kvm_segment`."""

    selector: int = 0
    base: int = 0
    limit: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741 (the field's name)
    g: int = 0
    avl: int = 0
    unusable: int = 0

    def descriptor(self) -> int:
        """The 8-byte descriptor-table entry that loads this segment. Intel SDM vol. 3A, figure 3-8."""
        limit = self.limit >> 12 if self.g else self.limit
        access = self.type | self.s << 4 | self.dpl << 5 | self.present << 7
        flags = access | self.avl << 12 | self.l << 13 | self.db << 14 | self.g << 15
        return (
            (limit & 0xFFFF)
            | (self.base & 0xFFFFFF) << 16
            | flags << 40
            | (limit >> 16 & 0xF) << 48
            | (self.base >> 24 & 0xFF) << 56
        )


@dataclass(frozen=True)
class DescriptorTable:
    """GDTR or IDTR: linear base address and limit (bytes - 1)."""

    base: int = 0
    limit: int = 0


_FLAT_DATA = Segment(BOOT_DS, 0, 0xFFFFFFFF, _DATA_READ_WRITE, present=1, db=1, s=1, g=1)
_CODE64 = Segment(BOOT_CS, 0, 0xFFFFFFFF, _CODE_EXEC_READ, present=1, s=1, l=1, g=1)
_CODE32 = Segment(BOOT_CS, 0, 0xFFFFFFFF, _CODE_EXEC_READ, present=1, db=1, s=1, g=1)
_TASK = Segment(BOOT_TR, 0, 0x67, _TSS_BUSY, present=1)
_NO_LDT = Segment(type=2, unusable=1)


@dataclass(frozen=True)
class CpuState:
    """Registers of the boot processor. General registers not named here are zero."""

    rip: int
    rsp: int
    rsi: int
    rbx: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    cs: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    rflags: int = _RFLAGS_RESERVED
    ds: Segment = _FLAT_DATA
    es: Segment = _FLAT_DATA
    fs: Segment = _FLAT_DATA
    gs: Segment = _FLAT_DATA
    ss: Segment = _FLAT_DATA
    tr: Segment = _TASK
    ldt: Segment = _NO_LDT


def linux64_state(memory: GuestMemory, entry: int, zero_page: int = layout.ZERO_PAGE) -> CpuState:
    """Long mode at `entry` with rsi = `zero_page`; writes page tables, GDT and an empty IDT. Raises GuestFault."""
    _write_page_tables(memory)
    gdt, idt = _write_tables(memory, _CODE64)
    return CpuState(
        rip=entry,
        rsp=layout.BOOT_STACK,
        rsi=zero_page,
        rbx=0,
        cr0=CR0_PE | CR0_ET | CR0_PG,
        cr3=layout.PML4,
        cr4=CR4_PAE,
        efer=EFER_LME | EFER_LMA,
        cs=_CODE64,
        gdt=gdt,
        idt=idt,
    )


def pvh_state(memory: GuestMemory, entry: int, start_info: int = layout.PVH_START_INFO) -> CpuState:
    """Flat 32-bit protected mode at `entry` with ebx = `start_info`; writes GDT and an empty IDT. Raises GuestFault."""
    gdt, idt = _write_tables(memory, _CODE32)
    return CpuState(
        rip=entry,
        rsp=layout.BOOT_STACK,
        rsi=0,
        rbx=start_info,
        cr0=CR0_PE | CR0_ET,
        cr3=0,
        cr4=0,
        efer=0,
        cs=_CODE32,
        gdt=gdt,
        idt=idt,
    )


def _write_page_tables(memory: GuestMemory) -> None:
    """Identity-map the first 4 GiB with 2 MiB pages (1 GiB pages are a CPU feature; these every long mode has)."""
    memory.write(layout.PML4, struct.pack("<Q", layout.PDPT | _PRESENT_WRITABLE))
    directories = [layout.PAGE_DIRECTORIES + i * layout.PAGE for i in range(4)]
    memory.write(layout.PDPT, struct.pack("<4Q", *(d | _PRESENT_WRITABLE for d in directories)))
    memory.write(layout.PAGE_DIRECTORIES, _page_directories())


@cache
def _page_directories() -> bytes:
    pages = (i * 2 * layout.MIB | _PRESENT_WRITABLE | _PAGE_SIZE_BIT for i in range(4 * 512))
    return struct.pack("<2048Q", *pages)


def _write_tables(memory: GuestMemory, code: Segment) -> tuple[DescriptorTable, DescriptorTable]:
    """GDT: null, unused, __BOOT_CS, __BOOT_DS, TSS (two slots: a 64-bit TSS descriptor is 16 bytes)."""
    gdt = struct.pack("<6Q", 0, 0, code.descriptor(), _FLAT_DATA.descriptor(), _TASK.descriptor(), 0)
    memory.write(layout.GDT, gdt)
    memory.write(layout.IDT, bytes(8))
    return DescriptorTable(layout.GDT, len(gdt) - 1), DescriptorTable(layout.IDT, 7)


MSR_IA32_TSC = 0x10
MSR_IA32_MISC_ENABLE = 0x1A0
MSR_IA32_MTRR_DEF_TYPE = 0x2FF


def boot_msrs() -> tuple[tuple[int, int], ...]:
    """(index, value) of the MSRs that firmware would have set, for every vCPU. Intel SDM vol. 4, table 2-2.

    The time-stamp counters of all processors start at 0 together, so that the kernel finds them synchronised; string
    instructions are fast; memory without an MTRR of its own is write-back (MTRRs enabled, default type 6).
    """
    return ((MSR_IA32_TSC, 0), (MSR_IA32_MISC_ENABLE, 1), (MSR_IA32_MTRR_DEF_TYPE, 1 << 11 | 6))
