"""The Multiple APIC Description Table: processors and interrupt controllers (ACPI 6.4, 5.2.12; revision 5)."""

from __future__ import annotations

import struct

from aiovmm.boot.acpi.sdt import sdt
from aiovmm.boot.x86_64.acpi.config import AcpiConfig, Cpu, IoApic

__all__ = ["ApicFlags", "local_apic", "madt"]

REVISION = 5  # from here on "online capable" is defined

_LOCAL_APIC, _IO_APIC, _SOURCE_OVERRIDE, _LOCAL_APIC_NMI = 0, 1, 2, 4
_LOCAL_X2APIC, _LOCAL_X2APIC_NMI = 9, 10

_ALL_PROCESSORS, _ALL_X2APIC_PROCESSORS = 0xFF, 0xFFFFFFFF
_NMI_LINT = 1
_FIRST_X2APIC_ID = 255  # a lower APIC ID must be in a Processor Local APIC structure (5.2.12.12)
_MAX_LOCAL_APIC_UID = 255

_ISA_BUS = 0
_ISA_INTERRUPTS = 16
_EDGE_ACTIVE_HIGH = 0b0101  # MPS INTI flags (table 5.26)


class ApicFlags:
    """Local APIC flags (table 5.22)."""

    ENABLED = 1
    ONLINE_CAPABLE = 2


def madt(config: AcpiConfig) -> bytes:
    """The MADT. PCAT_COMPAT is clear: there is no 8259."""
    entries = [_processor(uid, cpu) for uid, cpu in enumerate(config.cpus)]
    entries.append(_io_apic(config.io_apic))
    entries += [_isa_override(port.gsi) for port in config.serial_ports if port.gsi < _ISA_INTERRUPTS]
    entries.append(struct.pack("<BBBHB", _LOCAL_APIC_NMI, 6, _ALL_PROCESSORS, 0, _NMI_LINT))
    if any(_needs_x2apic(uid, cpu) for uid, cpu in enumerate(config.cpus)):
        entries.append(struct.pack("<BBHIB3x", _LOCAL_X2APIC_NMI, 12, 0, _ALL_X2APIC_PROCESSORS, _NMI_LINT))
    return sdt("APIC", REVISION, struct.pack("<II", config.local_apic_address, 0) + b"".join(entries))


def _needs_x2apic(uid: int, cpu: Cpu) -> bool:
    return cpu.apic_id >= _FIRST_X2APIC_ID or uid >= _MAX_LOCAL_APIC_UID


def _processor(uid: int, cpu: Cpu) -> bytes:
    return local_apic(uid, cpu, ApicFlags.ENABLED if cpu.enabled else ApicFlags.ONLINE_CAPABLE)


def local_apic(uid: int, cpu: Cpu, flags: int) -> bytes:
    """A processor's entry, which is also what its _MAT gives."""
    if _needs_x2apic(uid, cpu):
        return struct.pack("<BBHIII", _LOCAL_X2APIC, 16, 0, cpu.apic_id, flags, uid)
    return struct.pack("<BBBBI", _LOCAL_APIC, 8, uid, cpu.apic_id, flags)


def _io_apic(io_apic: IoApic) -> bytes:
    return struct.pack("<BBBBII", _IO_APIC, 12, io_apic.apic_id, 0, io_apic.address, io_apic.gsi_base)


def _isa_override(gsi: int) -> bytes:
    """An ISA interrupt wired to the same GSI, edge-triggered and active high.

    That is ISA's default, but without an 8259 a guest has no reason to assume an ISA interrupt at all.
    """
    return struct.pack("<BBBBIH", _SOURCE_OVERRIDE, 10, _ISA_BUS, gsi, gsi, _EDGE_ACTIVE_HIGH)
