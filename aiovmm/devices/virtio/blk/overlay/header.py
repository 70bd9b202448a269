"""What an overlay's file says of itself. Pure.

    0          header, in two copies of 4096 bytes each: the newer one that is whole counts, the other one is written next
    map_at     the map: a bit a cluster, least significant first; set: the cluster is in this file, else it is the base's
    data_at    the disk: its byte n lies at data_at + n, so the file is as sparse as what was written is

All numbers are little-endian. Bits of the map are only ever set while a guest runs, after the data they speak of is on the
medium: whenever that ends, each bit that is there is true, and a map of which a part was written is a map. A file is input like
any other: nothing of it is believed that was not checked here.
"""

from __future__ import annotations

import enum
import struct
import zlib
from pathlib import Path

from aiovmm.errors import ImageError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["COPIES", "COPY_SIZE", "MAGIC", "MAX_SIZE", "BaseKind", "Header", "Identity", "layout", "newest"]

MAGIC = b"aiovmmOV"
VERSION = 1
COPY_SIZE = 4096
COPIES = 2
MAX_SIZE = 16 << 40
"""Bytes of a disk: what ext4 has in a file, and a map of 32 MiB with the largest clusters."""

_MAP_AT = COPIES * COPY_SIZE
_MAP_MOST = 32 << 20
_COMMITTING = 1
_LEAST_SHIFT, _MOST_SHIFT = 12, 16  # clusters of 4 to 64 KiB
_DATA_UNIT = 1 << 20
_FIXED = struct.Struct("<8sIIQQQQQQI16sIQqQ16sI")
_CHECKSUM = struct.Struct("<I")
_PATH_MOST = COPY_SIZE - _FIXED.size - _CHECKSUM.size


class BaseKind(enum.IntEnum):
    """What a base is."""

    FILE = 1
    DEVICE = 2
    OVERLAY = 3


@dataclass(frozen=True)
class Identity:
    """What tells a base from another one, and from itself after a change: bytes of the disk, nanoseconds, the file's number (of a
    device its own), and of an overlay its id. A device has no time of change."""

    kind: BaseKind
    size: int
    mtime: int
    number: int
    uuid: bytes = bytes(16)

    def difference(self, now: Identity) -> str | None:
        """How the base `now` is another one; None: it is the same."""
        if self.kind is not now.kind or self.uuid != now.uuid:
            return "it is another image"
        if self.size != now.size:
            return f"it has {now.size} bytes and had {self.size}"
        if self.mtime != now.mtime:
            return "it was written to"
        return "it is another file" if self.number != now.number else None


@dataclass(frozen=True)
class Header:
    """`size`: bytes of the disk, whole sectors. `base_size`: bytes of it that show the base. `generation`: grows with each write
    of the header. `shift`: a cluster is 1 << shift bytes. `base`: where the base was, relative to the overlay's directory.
    `committing`: its data is on the way into the base, which is neither what it was nor what it will be."""

    size: int
    base_size: int
    shift: int
    map_at: int
    map_size: int
    data_at: int
    uuid: bytes
    identity: Identity
    base: Path
    generation: int = 1
    committing: bool = False

    @property
    def map_used(self) -> int:
        """Bytes of the map that the disk's clusters take up, whole words."""
        return _map_bytes(self.size, self.shift)

    def pack(self) -> bytes:
        """One copy. Raises ImageError for a path of a base that is too long."""
        path = str(self.base).encode(errors="surrogateescape")
        if len(path) > _PATH_MOST:
            raise ImageError(str(self.base), f"has a name of more than {_PATH_MOST} bytes", "use a shorter one")
        i = self.identity
        fixed = _FIXED.pack(
            MAGIC,
            VERSION,
            self.shift,
            self.generation,
            self.size,
            self.base_size,
            self.map_at,
            self.map_size,
            self.data_at,
            _COMMITTING if self.committing else 0,
            self.uuid,
            i.kind,
            i.size,
            i.mtime,
            i.number,
            i.uuid,
            len(path),
        )
        body = (fixed + path).ljust(COPY_SIZE - _CHECKSUM.size, b"\0")
        return body + _CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def parse(cls, copy: bytes, name: str) -> Header:
        """One copy, checked whole. Raises ImageError with `name`, the file's."""
        if len(copy) != COPY_SIZE or not copy.startswith(MAGIC):
            raise ImageError(name, "is no overlay", "an overlay is made by `aiovmm disk create`, or by overlay=NEW")
        body, (checksum,) = copy[: -_CHECKSUM.size], _CHECKSUM.unpack(copy[-_CHECKSUM.size :])
        fields = _FIXED.unpack_from(body)
        _, version, shift, generation, size, base_size, map_at, map_size, data_at, flags, uuid, kind, *rest = fields
        base_bytes, mtime, number, base_uuid, path_size = rest
        if zlib.crc32(body) != checksum:
            raise ImageError(name, "has a damaged header")
        if version != VERSION or flags & ~_COMMITTING:
            raise ImageError(name, f"is of version {version}, and {VERSION} is known here", "use a newer aiovmm")
        if kind not in set(BaseKind) or path_size > _PATH_MOST:
            raise ImageError(name, "has a header that makes no sense: of its base")
        path = body[_FIXED.size : _FIXED.size + path_size].decode(errors="surrogateescape")
        if not path or "\0" in path:
            raise ImageError(name, "has a header that makes no sense: of its base's name")
        identity = Identity(BaseKind(kind), base_bytes, mtime, number, base_uuid)
        committing = bool(flags & _COMMITTING)
        header = cls(
            size, base_size, shift, map_at, map_size, data_at, uuid, identity, Path(path), generation, committing
        )
        header._check(name)
        return header

    def _check(self, name: str) -> None:
        sane = (
            _LEAST_SHIFT <= self.shift <= _MOST_SHIFT
            and 0 < self.size <= MAX_SIZE
            and not self.size % 512
            and self.base_size <= self.identity.size
            and self.identity.size <= 1 << 62
            and self.map_at >= _MAP_AT
            and not self.map_at % COPY_SIZE
            and not self.map_size % COPY_SIZE
            and self.map_used <= self.map_size <= 2 * _MAP_MOST
            and self.map_at + self.map_size <= self.data_at <= 1 << 40
            and not self.data_at % (1 << self.shift)
        )
        if not sane:
            raise ImageError(name, "has a header that makes no sense: of its sizes")


def _map_bytes(size: int, shift: int) -> int:
    clusters = -(-size // (1 << shift))
    return -(-clusters // 64) * 8


def layout(size: int, identity: Identity, base: Path, uuid: bytes) -> Header:
    """The header of a new overlay for a disk of `size` bytes. The map has room for a disk that grows to a tebibyte, or to four
    times what it is, but never needs more than 32 MiB. Raises ImageError."""
    if size > MAX_SIZE or size <= 0:
        raise ImageError(str(base), f"has {size} bytes, and an overlay takes 1 to {MAX_SIZE}")
    shift = _LEAST_SHIFT
    while _map_bytes(size, shift) > _MAP_MOST:
        shift += 1
    room = min(max(_map_bytes(size * 4, shift), _map_bytes(1 << 40, shift)), _MAP_MOST)
    map_size = -(-room // COPY_SIZE) * COPY_SIZE
    data_at = -(-(_MAP_AT + map_size) // _DATA_UNIT) * _DATA_UNIT
    return Header(size, min(size, identity.size), shift, _MAP_AT, map_size, data_at, uuid, identity, base)


def newest(copies: bytes, name: str) -> Header:
    """The one of the two copies that counts. Raises ImageError."""
    found: list[Header] = []
    errors: list[ImageError] = []
    for at in range(0, COPIES * COPY_SIZE, COPY_SIZE):
        try:
            found.append(Header.parse(copies[at : at + COPY_SIZE], name))
        except ImageError as exc:
            errors.append(exc)
    if not found:
        raise errors[0]
    return max(found, key=lambda header: header.generation)
