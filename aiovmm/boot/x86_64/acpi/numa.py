"""Which processors and memory are near each other: SRAT and SLIT (ACPI 6.4, 5.2.16 revision 3, and 5.2.17 revision 1)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from aiovmm.boot.acpi.sdt import sdt
from aiovmm.boot.x86_64.acpi.config import Cpu, NumaNode

__all__ = ["slit", "srat"]

_LOCAL_APIC, _MEMORY, _LOCAL_X2APIC, _GENERIC_INITIATOR = 0, 1, 2, 5
_PCI = 1  # the kind of a device handle
_FIRST_X2APIC_ID = 255
_ENABLED = 1
_SELF, _OTHER = 10, 20


def srat(nodes: Sequence[NumaNode], cpus: Sequence[Cpu]) -> bytes:
    """The System Resource Affinity Table: each processor, range of memory and initiator with its node (proximity domain)."""
    entries = [_processor(node.number, cpus[uid]) for node in nodes for uid in node.cpus]
    entries += [_memory(node.number, gpa, size) for node in nodes for gpa, size in node.ram]
    entries += [_initiator(node.number, *node.initiator) for node in nodes if node.initiator is not None]
    return sdt("SRAT", 3, struct.pack("<IQ", 1, 0) + b"".join(entries))


def _processor(node: int, cpu: Cpu) -> bytes:
    """Absent ones as well: they may be brought."""
    if cpu.apic_id >= _FIRST_X2APIC_ID:
        return struct.pack("<BBHIIIII", _LOCAL_X2APIC, 24, 0, node, cpu.apic_id, _ENABLED, 0, 0)
    high = node.to_bytes(4, "little")[1:]
    return struct.pack("<BBBBIB3sI", _LOCAL_APIC, 16, node & 0xFF, cpu.apic_id, _ENABLED, 0, high, 0)


def _memory(node: int, gpa: int, size: int) -> bytes:
    return struct.pack("<BBIHQQIIQ", _MEMORY, 40, node, 0, gpa, size, 0, _ENABLED, 0)


def _initiator(node: int, segment: int, bdf: int) -> bytes:
    """5.2.16.6: the bus comes before the device and the function."""
    return struct.pack(
        "<BBBBIHBB12xII", _GENERIC_INITIATOR, 32, 0, _PCI, node, segment, bdf >> 8, bdf & 0xFF, _ENABLED, 0
    )


def slit(nodes: Sequence[NumaNode]) -> bytes:
    """The System Locality Distance Information Table: a square, by the numbers of the nodes; of numbers that no node has, nobody
    asks."""
    said = {(node.number, other): distance for node in nodes for other, distance in node.distances}
    count = max(node.number for node in nodes) + 1
    square = bytes(
        _SELF if a == b else said.get((a, b), said.get((b, a), _OTHER)) for a in range(count) for b in range(count)
    )
    return sdt("SLIT", 1, struct.pack("<Q", count) + square)
