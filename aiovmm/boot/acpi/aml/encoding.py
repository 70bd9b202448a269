"""The two encodings that all of AML is built on: names (ACPI 6.4, 20.2.2) and package lengths (20.2.4)."""

from __future__ import annotations

import re

__all__ = ["name_string", "package_of", "pkg_length", "raw_pkg_length"]

_PATH = re.compile(r"(\\|\^*)((?:[A-Z_][A-Z0-9_]{0,3}(?:\.[A-Z_][A-Z0-9_]{0,3})*)?)")
_DUAL_NAME_PREFIX = b"\x2e"
_MULTI_NAME_PREFIX = b"\x2f"
_NULL_NAME = b"\x00"
_MAX_SEGMENTS = 255
_MAX_PKG_LENGTH = (1 << 28) - 1


def name_string(path: str) -> bytes:
    r"""A NameString: segments of 1 to 4 of A-Z 0-9 _, joined by dots, after `\` (the root) or `^` (a parent each).

    Short segments are padded with `_` as ASL does. Raises ValueError for anything else.
    """
    match = _PATH.fullmatch(path)
    if match is None or not path:
        raise ValueError(f"{path!r} is not an ACPI name")
    prefix, rest = match.groups()
    return prefix.encode() + _name_path(rest.split(".") if rest else [])


def _name_path(segments: list[str]) -> bytes:
    if len(segments) > _MAX_SEGMENTS:
        raise ValueError(f"{len(segments)} segments in an ACPI name; there can be {_MAX_SEGMENTS}")
    encoded = b"".join(s.ljust(4, "_").encode() for s in segments)
    if not segments:
        return _NULL_NAME
    if len(segments) == 1:
        return encoded
    if len(segments) == 2:
        return _DUAL_NAME_PREFIX + encoded
    return _MULTI_NAME_PREFIX + bytes([len(segments)]) + encoded


def raw_pkg_length(value: int) -> bytes:
    """`value` in PkgLength form: 6 bits in one byte, else 4 bits in the lead byte and 8 in each of 1 to 3 more.

    The lead byte's bits 7:6 count the bytes that follow. Raises ValueError above 2**28 - 1.
    """
    if not 0 <= value <= _MAX_PKG_LENGTH:
        raise ValueError(f"{value} does not fit a package length")
    if value < 1 << 6:
        return bytes([value])
    following = next(n for n in (1, 2, 3) if value < 1 << (4 + 8 * n))
    return bytes([following << 6 | value & 0xF]) + (value >> 4).to_bytes(following, "little")


def pkg_length(size: int) -> bytes:
    """The PkgLength of `size` bytes that follow it. The number encoded includes the PkgLength itself (20.2.4)."""
    for own in (1, 2, 3, 4):
        encoded = raw_pkg_length(size + own)
        if len(encoded) <= own:
            return encoded
    raise AssertionError("raw_pkg_length gives at most four bytes")


def package_of(opcode: bytes, *content: bytes) -> bytes:
    """`opcode PkgLength content`, the shape of every AML object that has a body."""
    body = b"".join(content)
    return opcode + pkg_length(len(body)) + body
