"""The table of processors and interrupts for systems that do without ACPI: `acpi=off`, and small ones that never learnt it. Pure.

Source: Intel MultiProcessor Specification 1.4, chapter 4. Where ACPI is used, nobody looks at it (Linux, mpparse.c).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from aiovmm.boot.acpi.sdt import checksum
from aiovmm.boot.pci import PciSegment
from aiovmm.boot.x86_64.acpi.config import AcpiConfig, Cpu

__all__ = ["mp_table"]

_POINTER = struct.Struct("<4sIBBB5s")  # 16 bytes
_HEADER = struct.Struct("<4sHBB8s12sIHHIHBB")  # 44 bytes
_PROCESSOR = struct.Struct("<BBBBII8x")
_BUS = struct.Struct("<BB6s")
_IO_APIC = struct.Struct("<BBBBI")
_INTERRUPT = struct.Struct("<BBHBBBB")
_REVISION = 4  # of 1.4

_TYPE_PROCESSOR, _TYPE_BUS, _TYPE_IO_APIC, _TYPE_IO_INTERRUPT, _TYPE_LOCAL_INTERRUPT = range(5)
_INT, _NMI, _EXTINT = 0, 1, 3
_AS_THE_BUS_HAS_IT = 0  # polarity and trigger: ISA's are edges to high, PCI's are levels, low
_ENABLED, _BOOT_PROCESSOR = 1, 2
_ALL_APICS = 0xFF
_LAST_APIC_ID = 254
_PCI_BUS = 0  # Linux takes its number for PCI's own
_ISA_BUS, _ISA_INTERRUPTS = 1, 16
_LOCAL_APIC_VERSION, _IO_APIC_VERSION = 0x14, 0x11
_SIGNATURE, _FEATURES = 0x600, 0x201  # for those that do not ask CPUID: family 6, with FPU and local APIC
_OFFSET_OF_CHECKSUM = 7


def mp_table(config: AcpiConfig, base: int) -> bytes:
    """The floating pointer and the configuration table, for guest-physical address `base`, which must be one of those where it
    is looked for: aligned to 16 bytes, in the last KiB of base memory or in the BIOS area from 0xF0000.

    Of the machine that ACPI is told of, it has what fits: the processors that are there and that 8 bits can name, and one PCI
    bus, the first segment's.
    """
    pci = next((s for s in config.pci_segments if s.segment == 0), None)
    entries = [
        *_processors(config.cpus),
        *([] if pci is None else [_BUS.pack(_TYPE_BUS, _PCI_BUS, b"PCI   ")]),
        _BUS.pack(_TYPE_BUS, _ISA_BUS, b"ISA   "),
        _IO_APIC.pack(_TYPE_IO_APIC, config.io_apic.apic_id, _IO_APIC_VERSION, 1, config.io_apic.address),
        *_io_interrupts(config.io_apic.apic_id, pci),
        _interrupt(_TYPE_LOCAL_INTERRUPT, _EXTINT, _ISA_BUS, 0, _ALL_APICS, 0),
        _interrupt(_TYPE_LOCAL_INTERRUPT, _NMI, _ISA_BUS, 0, _ALL_APICS, 1),
    ]
    body = b"".join(entries)
    return _pointer(base + _POINTER.size) + _header(len(entries), body, config.local_apic_address) + body


def _processors(cpus: Sequence[Cpu]) -> list[bytes]:
    """The first is the one that boots."""
    return [
        _PROCESSOR.pack(
            _TYPE_PROCESSOR,
            cpu.apic_id,
            _LOCAL_APIC_VERSION,
            _ENABLED | (_BOOT_PROCESSOR if cpu is cpus[0] else 0),
            _SIGNATURE,
            _FEATURES,
        )
        for cpu in cpus
        if cpu.enabled and cpu.apic_id <= _LAST_APIC_ID
    ]


def _io_interrupts(apic: int, pci: PciSegment | None) -> list[bytes]:
    """ISA's are pins of the same number; then INTA of PCI's slots."""
    wires = () if pci is None else pci.intx
    return [
        *(_interrupt(_TYPE_IO_INTERRUPT, _INT, _ISA_BUS, irq, apic, irq) for irq in range(_ISA_INTERRUPTS)),
        *(_interrupt(_TYPE_IO_INTERRUPT, _INT, _PCI_BUS, wire.slot << 2, apic, wire.gsi) for wire in wires),
    ]


def _interrupt(entry: int, kind: int, bus: int, irq: int, apic: int, pin: int) -> bytes:
    return _INTERRUPT.pack(entry, kind, _AS_THE_BUS_HAS_IT, bus, irq, apic, pin)


def _pointer(table: int) -> bytes:
    pointer = bytearray(_POINTER.pack(b"_MP_", table, _POINTER.size // 16, _REVISION, 0, bytes(5)))
    pointer[10] = checksum(pointer)
    return bytes(pointer)


def _header(count: int, body: bytes, local_apic: int) -> bytes:
    length = _HEADER.size + len(body)
    header = bytearray(
        _HEADER.pack(b"PCMP", length, _REVISION, 0, b"AIOVMM  ", b"AIOVMM      ", 0, 0, count, local_apic, 0, 0, 0)
    )
    header[_OFFSET_OF_CHECKSUM] = -(sum(header) + sum(body)) & 0xFF
    return bytes(header)
