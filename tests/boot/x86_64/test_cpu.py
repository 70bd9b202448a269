"""The processor state, read back as the processor would: descriptors and page tables are decoded from guest memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.boot.x86_64.cpu import CpuState, Segment, boot_msrs, linux64_state, pvh_state
from aiovmm.memory import GuestMemory


def walk(memory: GuestMemory, cr3: int, address: int) -> int | None:
    """Translate with 4-level paging (Intel SDM vol. 3A, 4.5): physical address, or None if not present and writable."""
    table = cr3
    for shift in (39, 30, 21, 12):
        entry = int.from_bytes(memory.read(table + (address >> shift & 0x1FF) * 8, 8), "little")
        if entry & 3 != 3:
            return None
        base = entry & 0x000F_FFFF_FFFF_F000
        if shift == 12 or entry & 0x80:
            return base & -(1 << shift) | address & (1 << shift) - 1
        table = base
    return None


@given(st.integers(0, (1 << 32) - 1))
def test_first_4_gib_are_identity_mapped(address: int) -> None:
    memory = GuestMemory.create([(0, 1 << 20)])
    state = linux64_state(memory, 0x1000000)
    assert walk(memory, state.cr3, address) == address
    assert walk(memory, state.cr3, address + (4 << 30)) is None
    memory.close()


def decode(memory: GuestMemory, state: CpuState, selector: int) -> Segment:
    """The segment that loading `selector` from the GDT gives."""
    assert selector + 7 <= state.gdt.limit
    (d,) = struct.unpack("<Q", memory.read(state.gdt.base + selector, 8))
    g = d >> 55 & 1
    limit = (d & 0xFFFF) | (d >> 48 & 0xF) << 16
    return Segment(
        selector=selector,
        base=(d >> 16 & 0xFFFFFF) | (d >> 56 & 0xFF) << 24,
        limit=limit << 12 | 0xFFF if g else limit,
        type=d >> 40 & 0xF,
        s=d >> 44 & 1,
        dpl=d >> 45 & 3,
        present=d >> 47 & 1,
        avl=d >> 52 & 1,
        l=d >> 53 & 1,
        db=d >> 54 & 1,
        g=g,
    )


@pytest.mark.parametrize("enter", [linux64_state, pvh_state])
def test_segment_registers_agree_with_the_gdt(enter: object, memory: GuestMemory) -> None:
    state = linux64_state(memory, 0x1000000) if enter is linux64_state else pvh_state(memory, 0x1000000)
    for segment in (state.cs, state.ds, state.es, state.fs, state.gs, state.ss, state.tr):
        assert decode(memory, state, segment.selector) == segment
    assert (state.cs.selector, state.ds.selector) == (0x10, 0x18), "__BOOT_CS and __BOOT_DS"


def test_linux_64bit_entry(memory: GuestMemory) -> None:
    state = linux64_state(memory, 0x1000000, zero_page=0x7000)
    assert (state.rip, state.rsi) == (0x1000000, 0x7000)
    assert state.rflags & (1 << 9) == 0, "interrupts disabled"
    assert state.cr0 & 0x80000001 == 0x80000001
    assert state.cr4 & (1 << 5), "PAE"
    assert state.efer & 0x500 == 0x500, "LME and LMA"
    assert (state.cs.l, state.cs.db) == (1, 0)


def test_pvh_entry(memory: GuestMemory) -> None:
    state = pvh_state(memory, 0x1000850, start_info=0x6000)
    assert (state.rip, state.rbx) == (0x1000850, 0x6000)
    assert state.cr0 & 0x80000001 == 1, "protected mode, no paging"
    assert (state.cr4, state.efer) == (0, 0)
    assert state.rflags & (1 << 9 | 1 << 17) == 0, "IF and VM clear"
    assert (state.cs.l, state.cs.db, state.cs.base, state.cs.limit) == (0, 1, 0, 0xFFFFFFFF)
    assert (state.tr.base, state.tr.limit) == (0, 0x67)


def test_boot_msrs() -> None:
    msrs = dict(boot_msrs())
    assert msrs[0x10] == 0, "all time-stamp counters start together"
    assert msrs[0x1A0] & 1, "fast strings"
    assert msrs[0x2FF] == 0x806, "MTRRs on, default write-back"
