"""The common shape of ACPI tables: header, checksum, generic addresses; the tables that find the others (ACPI 6.4, 5.2.3-8)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

__all__ = ["GAS_SIZE", "HEADER", "RSDP_SIZE", "AccessSize", "GasSpace", "checksum", "gas", "rsdp", "sdt", "xsdt"]

OEM_ID = b"AIOVMM"
CREATOR_ID = b"AVMM"
OEM_REVISION = CREATOR_REVISION = 1

HEADER = struct.Struct("<4sIBB6s8sI4sI")  # 36 bytes (ACPI 6.4, table 5.4)
_CHECKSUM_OFFSET = 9
_GAS = struct.Struct("<BBBBQ")
GAS_SIZE = _GAS.size
_RSDP_V1_SIZE, RSDP_SIZE = 20, 36


class GasSpace:
    """Address space of a generic address (ACPI 6.4, table 5.1)."""

    SYSTEM_MEMORY = 0
    SYSTEM_IO = 1


class AccessSize:
    """Width of an access to a generic address."""

    BYTE = 1
    WORD = 2
    DWORD = 3
    QWORD = 4


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of `data` and itself a multiple of 256."""
    return -sum(data) & 0xFF


def sdt(signature: str, revision: int, body: bytes) -> bytes:
    """A system description table: the 36-byte header with its checksum, then `body`. `signature`: four characters."""
    header = HEADER.pack(
        signature.encode("ascii"),
        HEADER.size + len(body),
        revision,
        0,
        OEM_ID,
        b"AVMM" + signature.encode("ascii"),
        OEM_REVISION,
        CREATOR_ID,
        CREATOR_REVISION,
    )
    table = bytearray(header + body)
    table[_CHECKSUM_OFFSET] = checksum(table)
    return bytes(table)


def gas(space: int, address: int, bits: int, access: int) -> bytes:
    """A Generic Address Structure of 12 bytes: a register of `bits` bits at `address` (ACPI 6.4, 5.2.3.2)."""
    return _GAS.pack(space, bits, 0, access, address)


def rsdp(xsdt_address: int) -> bytes:
    """The Root System Description Pointer, revision 2, 36 bytes. There is no RSDT (ACPI 6.4, 5.2.5.3)."""
    pointer = bytearray(
        struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, 0, RSDP_SIZE, xsdt_address, 0),
    )
    pointer[8] = checksum(pointer[:_RSDP_V1_SIZE])
    pointer[32] = checksum(pointer)
    return bytes(pointer)


def xsdt(addresses: Sequence[int]) -> bytes:
    """The Extended System Description Table: the guest-physical addresses of the tables (ACPI 6.4, 5.2.8)."""
    return sdt("XSDT", 1, struct.pack(f"<{len(addresses)}Q", *addresses))
