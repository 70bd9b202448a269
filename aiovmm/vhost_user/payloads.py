"""What follows the header, as inert values: each packs itself, and unpacks from exactly its bytes or raises PeerError."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from aiovmm.errors import PeerError
from aiovmm.vhost_user.protocol import CONFIG_SIZE, MAX_REGIONS

__all__ = [
    "ConfigSpace",
    "Empty",
    "InflightArea",
    "MemoryTable",
    "Payload",
    "Region",
    "VringAddr",
    "VringState",
    "Word",
]

_U64 = (1 << 64) - 1


class Payload(Protocol):
    """A message's content."""

    def pack(self) -> bytes:
        """Its bytes on the wire."""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The inverse. Raises PeerError."""


def _fields(layout: struct.Struct, data: bytes, what: str) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise PeerError(f"{what} has {len(data)} bytes instead of {layout.size}")
    return layout.unpack(data)


@dataclass(frozen=True)
class Empty:
    """No payload."""

    def pack(self) -> bytes:
        """No bytes."""
        return b""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The inverse. Raises PeerError."""
        if data:
            raise PeerError(f"{len(data)} bytes of payload where none belong")
        return cls()


@dataclass(frozen=True)
class Word:
    """One 64-bit number: feature bits, a count, a status, or a ring's index with NO_FD."""

    value: int
    _layout: ClassVar = struct.Struct("<Q")

    def pack(self) -> bytes:
        """8 bytes, little-endian, as are all."""
        return self._layout.pack(self.value)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The inverse. Raises PeerError."""
        return cls(*_fields(cls._layout, data, "a number"))


@dataclass(frozen=True)
class VringState:
    """A ring's index and a number for it: its size, its base, or 1 and 0 for enabled and not."""

    index: int
    num: int = 0
    _layout: ClassVar = struct.Struct("<II")

    def pack(self) -> bytes:
        """8 bytes."""
        return self._layout.pack(self.index, self.num)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The inverse. Raises PeerError."""
        return cls(*_fields(cls._layout, data, "a vring state"))


@dataclass(frozen=True)
class VringAddr:
    """Where a ring's three parts lie, in the front end's own addresses (those of the memory table)."""

    index: int
    desc: int
    used: int
    avail: int
    flags: int = 0
    log: int = 0
    _layout: ClassVar = struct.Struct("<IIQQQQ")

    def pack(self) -> bytes:
        """40 bytes."""
        return self._layout.pack(self.index, self.flags, self.desc, self.used, self.avail, self.log)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The inverse. Raises PeerError."""
        index, flags, desc, used, avail, log = _fields(cls._layout, data, "a vring address")
        return cls(index, desc, used, avail, flags, log)


@dataclass(frozen=True)
class Region:
    """`size` bytes of guest memory: guest-physical address, the front end's address, and the offset in the fd."""

    gpa: int
    size: int
    user: int
    offset: int

    @property
    def well_formed(self) -> bool:
        """Neither empty nor wrapping round."""
        return self.size > 0 and max(self.gpa, self.user, self.offset) + self.size <= _U64


@dataclass(frozen=True)
class MemoryTable:
    """The guest's memory: 1 to MAX_REGIONS regions, the fd of region i being the i-th with the message."""

    regions: tuple[Region, ...]
    _head: ClassVar = struct.Struct("<II")
    _region: ClassVar = struct.Struct("<QQQQ")

    def pack(self) -> bytes:
        """8 bytes, and 32 for each region."""
        rows = (self._region.pack(r.gpa, r.size, r.user, r.offset) for r in self.regions)
        return self._head.pack(len(self.regions), 0) + b"".join(rows)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The inverse. Raises PeerError."""
        if len(data) < cls._head.size:
            raise PeerError(f"a memory table has {len(data)} bytes")
        count, _ = cls._head.unpack_from(data)
        if not 0 < count <= MAX_REGIONS:
            raise PeerError(f"a memory table has {count} regions, not 1..{MAX_REGIONS}")
        body = data[cls._head.size :]
        # some front ends send the whole array, of which only `count` entries mean anything
        if len(body) < count * cls._region.size or len(body) > MAX_REGIONS * cls._region.size:
            raise PeerError(f"a memory table of {count} regions has {len(data)} bytes")
        rows = [Region(*cls._region.unpack_from(body, i * cls._region.size)) for i in range(count)]
        if not all(r.well_formed for r in rows):
            raise PeerError("a memory region is empty or wraps round")
        return cls(tuple(rows))


@dataclass(frozen=True)
class ConfigSpace:
    """`data` at `offset` of the configuration space; `size` is its length (an answer of size 0 says that it failed)."""

    offset: int
    data: bytes
    flags: int = 0
    _head: ClassVar = struct.Struct("<III")

    def pack(self) -> bytes:
        """12 bytes, and `data`."""
        return self._head.pack(self.offset, len(self.data), self.flags) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The inverse. Raises PeerError."""
        if not data:
            return cls(0, b"")
        if len(data) < cls._head.size:
            raise PeerError(f"a configuration access has {len(data)} bytes")
        offset, size, flags = cls._head.unpack_from(data)
        content = data[cls._head.size :]
        if size > CONFIG_SIZE or offset + size > CONFIG_SIZE or len(content) not in (size, CONFIG_SIZE):
            raise PeerError(f"a configuration access of {size} bytes at {offset} carries {len(content)}")
        return cls(offset, content[:size], flags)


@dataclass(frozen=True)
class InflightArea:
    """The shared record of requests in flight: `size` bytes at `offset` of the fd, for queues of `queue_size` entries."""

    size: int
    offset: int
    queues: int
    queue_size: int
    _layout: ClassVar = struct.Struct("<QQHH")
    _padded: ClassVar = struct.Struct("<QQHH4x")  # with a C compiler's tail padding, as QEMU sends it

    def pack(self) -> bytes:
        """24 bytes."""
        return self._padded.pack(self.size, self.offset, self.queues, self.queue_size)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The inverse. Raises PeerError."""
        if len(data) == cls._padded.size:
            data = data[: cls._layout.size]
        area = cls(*_fields(cls._layout, data, "an in-flight description"))
        if area.size + area.offset > _U64:
            raise PeerError("an in-flight area wraps round")
        return area
