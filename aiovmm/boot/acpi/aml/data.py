"""Data objects: integers, strings, buffers, packages, and the two identifiers made of them (ACPI 6.4, 20.2.3, 20.2.5.4)."""

from __future__ import annotations

import re

from aiovmm.boot.acpi.aml.encoding import package_of

__all__ = ["buffer", "eisa_id", "integer", "package", "string", "uuid"]

_ZERO, _ONE, _ONES = b"\x00", b"\x01", b"\xff"
_SIZED_PREFIXES = ((1, b"\x0a"), (2, b"\x0b"), (4, b"\x0c"), (8, b"\x0e"))
_STRING_PREFIX = b"\x0d"
_BUFFER, _PACKAGE = b"\x11", b"\x12"
_MAX_INTEGER = (1 << 64) - 1
_MAX_ELEMENTS = 255
_EISA_ID = r"[A-Z]{3}[0-9A-F]{4}"
_UUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


def integer(value: int) -> bytes:
    """An unsigned integer of up to 64 bits, in the shortest of ZeroOp, OneOp, OnesOp, byte, word, dword, qword.

    OnesOp stands for 64 ones only in a definition block of revision 2 or more, which all of ours are.
    """
    if not 0 <= value <= _MAX_INTEGER:
        raise ValueError(f"{value} is not an unsigned integer of 64 bits")
    short = {0: _ZERO, 1: _ONE, _MAX_INTEGER: _ONES}.get(value)
    if short is not None:
        return short
    size, prefix = next(sized for sized in _SIZED_PREFIXES if value < 1 << 8 * sized[0])
    return prefix + value.to_bytes(size, "little")


def string(text: str) -> bytes:
    """A NUL-terminated string of ASCII characters 0x01 to 0x7f."""
    if not text.isascii() or "\0" in text:
        raise ValueError(f"{text!r} has a character that an ACPI string cannot hold")
    return _STRING_PREFIX + text.encode("ascii") + b"\0"


def buffer(data: bytes) -> bytes:
    """A buffer of exactly `data`."""
    return package_of(_BUFFER, integer(len(data)), data)


def package(*elements: bytes) -> bytes:
    """A package (ASL's array) of encoded data objects; 255 at most."""
    if len(elements) > _MAX_ELEMENTS:
        raise ValueError(f"{len(elements)} elements in a package; there can be {_MAX_ELEMENTS}")
    return package_of(_PACKAGE, bytes([len(elements)]), *elements)


def eisa_id(text: str) -> bytes:
    """ASL's EisaId: "PNP0501" as a dword, three letters of five bits each, then four hex digits, big-endian (19.6)."""
    if not re.fullmatch(_EISA_ID, text):
        raise ValueError(f"{text!r} is not an EISA ID: three letters and four hex digits")
    vendor = 0
    for letter in text[:3]:
        vendor = vendor << 5 | ord(letter) - ord("@")
    return integer(int.from_bytes(vendor.to_bytes(2, "big") + bytes.fromhex(text[3:]), "little"))


def uuid(text: str) -> bytes:
    """ASL's ToUUID: a buffer of 16 bytes with the first three groups little-endian (ACPI 6.4, 19.6)."""
    if not re.fullmatch(_UUID, text):
        raise ValueError(f"{text!r} is not a UUID")
    raw = bytes.fromhex(text.replace("-", ""))
    return buffer(raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:])
