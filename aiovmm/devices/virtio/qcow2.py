"""What the header of a qcow2 image says of other files. Pure. Source: QEMU's docs/interop/qcow2.txt.

An image names the file it is backed by, and whoever made the image chose that: one that came over the network may name any file
of the host, and the guest would have it. So none is followed unless somebody says so, and then no name that is more than a
file's, and none whose format would have to be guessed.
"""

from __future__ import annotations

import struct

from aiovmm.errors import ImageError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["HEADER_SIZE", "MAGIC", "Named", "parse_header"]

MAGIC = b"QFI\xfb"
HEADER_SIZE = 64 << 10
"""Bytes to look at: the header, its extensions and the name are within the first cluster, and that is enough of it."""

_FIXED = struct.Struct(">4sIQI")
_INCOMPATIBLE, _V3_SIZE = 72, 104
_EXTERNAL_DATA = 1 << 2
_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA
_NAME_MOST = 1023


@dataclass(frozen=True)
class Named:
    """`backing`: the name of the backing file, `format` its format if that is recorded; `elsewhere`: the data is in another."""

    backing: str | None = None
    format: str | None = None
    elsewhere: bool = False


def parse_header(data: bytes, name: str) -> Named:
    """`data`: the first HEADER_SIZE bytes of the image `name`. Raises ImageError."""
    if len(data) < 72 or not data.startswith(MAGIC):
        raise ImageError(name, "is no qcow2 image", "leave image_type out to have it found out")
    _, version, at, size = _FIXED.unpack_from(data)
    if version not in (2, 3) or (version == 3 and len(data) < _V3_SIZE):
        raise ImageError(name, f"is a qcow2 image of version {version}, and 2 and 3 are known")
    incompatible = struct.unpack_from(">Q", data, _INCOMPATIBLE)[0] if version == 3 else 0
    elsewhere = bool(incompatible & _EXTERNAL_DATA)
    if not at:
        return Named(elsewhere=elsewhere)
    if size > _NAME_MOST or not size or at + size > len(data):
        raise ImageError(name, "has a header that makes no sense: of its backing file's name")
    start = struct.unpack_from(">I", data, 100)[0] if version == 3 else 72
    return Named(data[at : at + size].decode(errors="surrogateescape"), _format(data, start, at), elsewhere)


def _format(data: bytes, at: int, end: int) -> str | None:
    """The extensions lie between the header and the name; what cannot be one ends them."""
    while at + _EXTENSION.size <= end:
        kind, size = _EXTENSION.unpack_from(data, at)
        at += _EXTENSION.size
        if not kind or at + size > end:
            return None
        if kind == _BACKING_FORMAT:
            return data[at : at + size].decode(errors="replace")
        at += -(-size // 8) * 8
    return None
