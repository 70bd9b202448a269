"""SMBIOS: who the machine is, as firmware would say it. Pure.

Structures lie one after the other, each with its strings behind it; they are numbered from 1, and 0 is "none". The
entry point of version 3 is found by its anchor in the BIOS area, at a multiple of 16 bytes.

Source: DMTF DSP0134, SMBIOS 3.3.0: 5.2.2 entry point, 6.1.3 strings, 7 structures.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["ENTRY_SIZE", "SmbiosMachine", "smbios"]

ENTRY_SIZE = 32
"""Bytes from the entry point to the structures; 24 are the entry point's."""

_VERSION = (3, 3, 0)
_ENTRY = struct.Struct("<5sBBBBBBBIQ")
_OURS = b"aiovmm"
_UNKNOWN, _OTHER = 2, 1
_NO_HANDLE, _NO_ERRORS = 0xFFFF, 0xFFFE
_KIB, _MIB = 10, 20
_STRINGS_AT_ONCE = 255

_MOST_PACKAGES = 256  # told of: there can be more than the BIOS area has room for
_FIRMWARE, _SYSTEM, _CHASSIS, _PROCESSORS = 0x0000, 0x0100, 0x0300, 0x4000
_OEM, _ARRAY, _MEMORY, _MAPPED, _BOOT, _END = 0x0B00, 0x1000, 0x1100, 0x1300, 0x2000, 0x7F00


@dataclass(frozen=True)
class SmbiosMachine:
    """What the structures tell. Texts are without NUL; those that are None or empty are not said. `uuid` is in text order, 16
    bytes, or None; `ram` has (gpa, size in bytes) of each piece; `packages` of `cores` with `threads` in all."""

    manufacturer: bytes | None = None
    product_name: bytes | None = None
    version: bytes | None = None
    serial_number: bytes | None = None
    uuid: bytes | None = None
    sku_number: bytes | None = None
    family: bytes | None = None
    asset_tag: bytes | None = None
    oem_strings: tuple[bytes, ...] = ()
    packages: int = 1
    cores: int = 1
    threads: int = 1
    ram: tuple[tuple[int, int], ...] = ()


class _Texts:
    """The strings of one structure; each gets its number."""

    def __init__(self) -> None:
        self._texts: list[bytes] = []

    def add(self, text: bytes | None) -> int:
        if not text:
            return 0
        self._texts.append(text)
        return len(self._texts)

    @property
    def data(self) -> bytes:
        return b"".join(text + b"\0" for text in self._texts) + (b"\0" if self._texts else b"\0\0")


def _structure(kind: int, handle: int, body: bytes, texts: _Texts | None = None) -> bytes:
    head = struct.pack("<BBH", kind, 4 + len(body), handle)
    return head + body + (texts or _Texts()).data


def smbios(machine: SmbiosMachine, address: int, end: int) -> bytes:
    """Entry point and structures, to be put at `address`, a multiple of 16 in the BIOS area. Raises ConfigError for texts that do
    not fit below `end`."""
    parts = [_firmware(), _system(machine), _chassis(machine)]
    parts += [_package(machine, n) for n in range(min(machine.packages, _MOST_PACKAGES))]
    parts += _oem_strings(machine.oem_strings)
    parts += _memory(machine.ram)
    parts += [_structure(32, _BOOT, bytes(7)), _structure(127, _END, b"")]
    table = b"".join(parts)
    if address + ENTRY_SIZE + len(table) > end:
        room = end - address - ENTRY_SIZE
        reason = f"SMBIOS tables with these texts have {len(table)} bytes, and there is room for {room}"
        raise ConfigError("platform.oem_strings", reason, "give the guest large texts by a disk, --fs or vsock")
    return _entry_point(address + ENTRY_SIZE, len(table)).ljust(ENTRY_SIZE, b"\0") + table


def _entry_point(address: int, size: int) -> bytes:
    entry = bytearray(_ENTRY.pack(b"_SM3_", 0, _ENTRY.size, *_VERSION, 1, 0, size, address))
    entry[5] = -sum(entry) & 0xFF
    return bytes(entry)


def _firmware() -> bytes:
    """Type 0. There is none, so it says who made up these tables; PCI is there (bit 7), and this is a virtual machine (bit 4)."""
    texts = _Texts()
    vendor, version = texts.add(_OURS), texts.add(b"1")
    body = struct.pack("<BBHBBQBBBBBBH", vendor, version, 0, 0, 0, 1 << 7, 0, 1 << 4, 255, 255, 255, 255, 0)
    return _structure(0, _FIRMWARE, body, texts)


def _system(m: SmbiosMachine) -> bytes:
    """Type 1. The first three fields of the UUID are little-endian (7.2.1); all zeros: it has none."""
    texts = _Texts()
    named = [texts.add(m.manufacturer or _OURS), texts.add(m.product_name or _OURS)]
    named += [texts.add(m.version), texts.add(m.serial_number)]
    uuid = m.uuid or bytes(16)
    mixed = uuid[3::-1] + uuid[5:3:-1] + uuid[7:5:-1] + uuid[8:]
    power_switch = 6
    body = bytes(named) + mixed + bytes([power_switch, texts.add(m.sku_number), texts.add(m.family)])
    return _structure(1, _SYSTEM, body, texts)


def _chassis(m: SmbiosMachine) -> bytes:
    """Type 3: of kind "other", and safe."""
    texts = _Texts()
    safe, no_security = 3, 3
    body = bytes([texts.add(m.manufacturer or _OURS), _OTHER, texts.add(m.version), texts.add(m.serial_number)])
    body += bytes([texts.add(m.asset_tag), safe, safe, safe, no_security])
    return _structure(3, _CHASSIS, body + bytes(8) + bytes([texts.add(m.sku_number)]), texts)


def _package(m: SmbiosMachine, number: int) -> bytes:
    """Type 4: 64 bits (characteristic 2), more than one core (3), or thread of a core (4)."""
    texts = _Texts()
    central, enabled, populated = 3, 1, 1 << 6
    traits = 1 << 2 | (m.cores > 1) << 3 | (m.threads > m.cores) << 4
    few = [min(count, 255) for count in (m.cores, m.cores, m.threads)]
    body = bytes([texts.add(b"CPU %d" % number), central, _OTHER, texts.add(_OURS)]) + bytes(8)
    body += bytes([texts.add(_OURS), 0]) + struct.pack("<HHH", 0, 0, 0) + bytes([populated | enabled, _OTHER])
    body += struct.pack("<HHH", _NO_HANDLE, _NO_HANDLE, _NO_HANDLE) + bytes(3) + bytes(few)
    body += struct.pack("<HHHHH", traits, _OTHER, m.cores, m.cores, m.threads)
    return _structure(4, _PROCESSORS + number, body, texts)


def _oem_strings(strings: Sequence[bytes]) -> list[bytes]:
    """Type 11, as many as it takes: the number of strings in one is a byte."""
    parts = []
    for number, at in enumerate(range(0, len(strings), _STRINGS_AT_ONCE)):
        texts = _Texts()
        count = max(texts.add(text) for text in strings[at : at + _STRINGS_AT_ONCE])
        parts.append(_structure(11, _OEM + number, bytes([count]), texts))
    return parts


def _memory(ram: Sequence[tuple[int, int]]) -> list[bytes]:
    """Types 16, 17 and 19: an array with one device, and where its bytes are."""
    total = sum(size for _, size in ram)
    if not total:
        return []
    board, system, none = 3, 3, 3
    array = struct.pack("<BBBIHHQ", board, system, none, 1 << 31, _NO_ERRORS, 1, total)
    mapped = [_mapped(n, gpa, size) for n, (gpa, size) in enumerate(ram)]
    return [_structure(16, _ARRAY, array), _device(total), *mapped]


def _device(size: int) -> bytes:
    """Type 17: in KiB (bit 15), in MiB, or, from 32 GiB - 1 MiB on, in the extended field."""
    texts = _Texts()
    dimm, ram, plain_ram = 9, 7, 3
    small = size >> _KIB < 1 << 15
    megabytes = size >> _MIB
    short = size >> _KIB | 1 << 15 if small else min(megabytes, 0x7FFF)
    body = struct.pack("<HHHHHBB", _ARRAY, _NO_ERRORS, 64, 64, short, dimm, 0)
    body += bytes([texts.add(b"DIMM 0"), 0, ram]) + struct.pack("<HH", 1 << _UNKNOWN, 0)
    body += bytes([texts.add(_OURS), 0, 0, 0, 0]) + struct.pack(
        "<IHHHH", megabytes if short == 0x7FFF else 0, 0, 0, 0, 0
    )
    body += (
        bytes([plain_ram]) + struct.pack("<HBHHHH", 1 << 3, 0, 0, 0, 0, 0) + struct.pack("<QQQQII", 0, size, 0, 0, 0, 0)
    )
    return _structure(17, _MEMORY, body, texts)


def _mapped(number: int, gpa: int, size: int) -> bytes:
    """Type 19: the first and last KiB, or, from 4 TiB on, bytes in the extended fields (7.20)."""
    first, last = gpa >> _KIB, (gpa + size - 1) >> _KIB
    if last < 0xFFFF_FFFF:
        body = struct.pack("<IIHBQQ", first, last, _ARRAY, 1, 0, 0)
    else:
        body = struct.pack("<IIHBQQ", 0xFFFF_FFFF, 0xFFFF_FFFF, _ARRAY, 1, gpa, gpa + size - 1)
    return _structure(19, _MAPPED + number, body)
