"""Objects that have a name: scopes, devices, methods, operation regions and their fields (ACPI 6.4, 20.2.5.1, 20.2.5.2)."""

from __future__ import annotations

from aiovmm.boot.acpi.aml.data import integer
from aiovmm.boot.acpi.aml.encoding import name_string, package_of, raw_pkg_length
from aiovmm.runtime.dataclass import dataclass

__all__ = [
    "Access",
    "FieldUnit",
    "RegionSpace",
    "Reserved",
    "Update",
    "device",
    "field",
    "method",
    "name",
    "operation_region",
    "scope",
]

_NAME, _SCOPE, _METHOD = b"\x08", b"\x10", b"\x14"
_OPERATION_REGION, _FIELD, _DEVICE = b"\x5b\x80", b"\x5b\x81", b"\x5b\x82"
_RESERVED_FIELD = b"\x00"
_SERIALIZED = 1 << 3
_LOCK = 1 << 4
_UPDATE_SHIFT = 5
_MAX_ARGUMENTS = 7
_MAX_SYNC_LEVEL = 15


class RegionSpace:
    """Address space of an operation region (ACPI 6.4, 5.5.2.4)."""

    SYSTEM_MEMORY = 0
    SYSTEM_IO = 1
    PCI_CONFIG = 2


class Access:
    """Width of the accesses that a field is read and written with."""

    ANY = 0
    BYTE = 1
    WORD = 2
    DWORD = 3
    QWORD = 4


class Update:
    """What a write does to the bits of an access unit that lie outside the field."""

    PRESERVE = 0
    WRITE_AS_ONES = 1
    WRITE_AS_ZEROS = 2


@dataclass(frozen=True)
class FieldUnit:
    """A named field of `bits` bits, at the place where the one before it ends."""

    name: str
    bits: int


@dataclass(frozen=True)
class Reserved:
    """`bits` bits that no name reaches."""

    bits: int


def name(path: str, value: bytes) -> bytes:
    """Name (path, value): `value` is an encoded data object."""
    return _NAME + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) { terms }."""
    return package_of(_SCOPE, name_string(path), *terms)


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) { terms }."""
    return package_of(_DEVICE, name_string(path), *terms)


def method(path: str, arguments: int, *terms: bytes, serialized: bool = False, sync_level: int = 0) -> bytes:
    """Method (path, arguments, serialized, sync_level) { terms }. A method that creates names must be serialized."""
    if not 0 <= arguments <= _MAX_ARGUMENTS:
        raise ValueError(f"a method of {arguments} arguments; there can be {_MAX_ARGUMENTS}")
    if not 0 <= sync_level <= _MAX_SYNC_LEVEL:
        raise ValueError(f"sync level {sync_level} is not in 0..{_MAX_SYNC_LEVEL}")
    flags = arguments | (_SERIALIZED if serialized else 0) | sync_level << 4
    return package_of(_METHOD, name_string(path), bytes([flags]), *terms)


def operation_region(path: str, space: int, offset: int, size: int) -> bytes:
    """OperationRegion (path, space, offset, size): `size` bytes from `offset`."""
    return _OPERATION_REGION + name_string(path) + bytes([space]) + integer(offset) + integer(size)


def field(
    region: str,
    *units: FieldUnit | Reserved,
    access: int = Access.ANY,
    lock: bool = False,
    update: int = Update.PRESERVE,
) -> bytes:
    """Field (region, access, lock, update) { units }. `lock`: accesses take the global lock."""
    flags = access | (_LOCK if lock else 0) | update << _UPDATE_SHIFT
    return package_of(_FIELD, name_string(region), bytes([flags]), *(_field_element(u) for u in units))


def _field_element(unit: FieldUnit | Reserved) -> bytes:
    """Here a PkgLength is a plain number of bits: it does not count itself (20.2.5.2, NamedField)."""
    lead = name_string(unit.name) if isinstance(unit, FieldUnit) else _RESERVED_FIELD
    return lead + raw_pkg_length(unit.bits)
