"""The MP table as a system without ACPI reads it (mpparse.c of Linux, and the specification's chapter 4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.boot.pci import IntxWire, PciSegment
from aiovmm.boot.x86_64 import layout, ram_ranges
from aiovmm.boot.x86_64.acpi import AcpiConfig, Cpu
from aiovmm.boot.x86_64.e820 import RAM, memory_map
from aiovmm.boot.x86_64.mptable import mp_table
from tests.boot.x86_64.acpi.machines import MACHINES, cpus

BASE = layout.MP_TABLE


@dataclass
class Read:
    """What a guest has found."""

    local_apic: int
    processors: list[tuple[int, int]] = field(default_factory=list)  # APIC id, flags
    buses: dict[int, str] = field(default_factory=dict)
    io_apics: list[tuple[int, int, int]] = field(default_factory=list)  # id, flags, address
    interrupts: list[tuple[int, ...]] = field(default_factory=list)  # type, flags, bus, irq, APIC, pin
    local: list[tuple[int, ...]] = field(default_factory=list)


def scan(area: bytes) -> int:
    """Offset of the floating pointer: every 16 bytes, by its signature, length and sum."""
    for at in range(0, len(area) - 15, 16):
        pointer = area[at : at + 16]
        if pointer[:4] == b"_MP_" and pointer[8] == 1 and sum(pointer) % 256 == 0 and pointer[9] in (1, 4):
            return at
    raise AssertionError("no MP table")


def read(blob: bytes) -> Read:
    at = scan(blob)
    assert blob[at + 11 : at + 16] == bytes(5), "a table, not a default configuration, and no IMCR"
    start = struct.unpack_from("<I", blob, at + 4)[0] - BASE
    length, count = struct.unpack_from("<H", blob, start + 4)[0], struct.unpack_from("<H", blob, start + 34)[0]
    table = blob[start : start + length]
    assert table[:4] == b"PCMP"
    assert len(table) == length
    assert sum(table) % 256 == 0
    assert table[6] == 4
    found = Read(struct.unpack_from("<I", table, 36)[0])
    at, last = 44, 0
    for _ in range(count):
        kind = table[at]
        assert kind >= last, "entries are in ascending order"
        last = kind
        if kind == 0:
            found.processors.append((table[at + 1], table[at + 3]))
        elif kind == 1:
            found.buses[table[at + 1]] = table[at + 2 : at + 8].decode()
        elif kind == 2:
            found.io_apics.append((table[at + 1], table[at + 3], struct.unpack_from("<I", table, at + 4)[0]))
        else:
            (found.interrupts if kind == 3 else found.local).append(struct.unpack_from("<BHBBBB", table, at + 1))
        at += 20 if kind == 0 else 8
    assert at == length
    return found


@pytest.mark.parametrize("name", MACHINES)
def test_it_describes_the_machine(name: str) -> None:
    machine = MACHINES[name]
    found = read(mp_table(machine, BASE))
    assert found.local_apic == 0xFEE00000
    assert found.io_apics == [(machine.io_apic.apic_id, 1, 0xFEC00000)]
    ids = [cpu.apic_id for cpu in machine.cpus if cpu.enabled and cpu.apic_id < 255]
    assert found.processors == [(ids[0], 3), *((apic_id, 1) for apic_id in ids[1:])]
    assert found.buses == ({0: "PCI   ", 1: "ISA   "} if machine.pci_segments else {1: "ISA   "})
    isa = [entry for entry in found.interrupts if entry[2] == 1]
    assert isa == [(0, 0, 1, irq, machine.io_apic.apic_id, irq) for irq in range(16)]
    assert found.local == [(3, 0, 1, 0, 255, 0), (1, 0, 1, 0, 255, 1)]


def test_the_wires_of_the_first_segment_are_those_of_its_slots() -> None:
    first = PciSegment(0, layout.ECAM, intx=(IntxWire(1, 16), IntxWire(31, 23)))
    second = PciSegment(1, layout.ECAM + (1 << 20), intx=(IntxWire(2, 17),))
    found = read(mp_table(AcpiConfig(pci_segments=(first, second)), BASE))
    assert [entry[3:] for entry in found.interrupts if entry[2] == 0] == [(1 << 2, 0, 16), (31 << 2, 0, 23)]


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 40))
def test_processors_are_those_that_are_there_and_that_8_bits_name(present: int, absent: int, step: int) -> None:
    ids = tuple(Cpu(n * step, enabled=n < present) for n in range(present + absent))
    blob = mp_table(AcpiConfig(cpus=ids), BASE)
    assert [apic_id for apic_id, _ in read(blob).processors] == [n * step for n in range(present) if n * step < 255]
    assert BASE + len(blob) < layout.HIGH_RAM


def test_it_lies_where_it_is_looked_for_and_no_guest_takes_it_for_memory() -> None:
    """Linux looks at the first KiB, the last of base memory, and the BIOS area."""
    blob = mp_table(AcpiConfig(cpus=cpus(255, 255)), BASE)
    bios = range(0xF0000, 0x100000)
    assert BASE in bios
    assert BASE + len(blob) in bios
    for entry in memory_map(ram_ranges(64 << 20)):
        assert entry.type != RAM or entry.address >= BASE + len(blob) or entry.address + entry.size <= BASE
