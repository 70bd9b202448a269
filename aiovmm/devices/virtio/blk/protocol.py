"""What goes over the wire of a virtio block device (VIRTIO 1.2 §5.2): numbers, and the configuration space.

Request headers are parsed by native code (native/src/blk.c), and the segments of discards by `extents`.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from functools import cache

__all__ = [
    "LASTING_CONFIG",
    "MAX_SEGMENTS",
    "MAX_SEGMENT_SECTORS",
    "SECTOR",
    "BlkConfigSpace",
    "Feature",
    "Geometry",
    "Request",
    "Status",
    "offered",
]

SECTOR = 512
"""Bytes: the unit of all positions and lengths on the wire, whatever `blk_size` says."""
MAX_SEGMENTS = 64
MAX_SEGMENT_SECTORS = (1 << 30) // SECTOR
"""What one discard or write-zeroes may ask for: bounds how long it keeps a thread of the host."""


class Feature(enum.IntFlag):
    """§5.2.3."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


@cache
def offered(*, readonly: bool, discard: bool, queues: int) -> Feature:
    """What a disk offers. `discard`: the back end can give space back, which makes no sense for one that is read only."""
    bits = Feature.SEG_MAX | Feature.BLK_SIZE | Feature.TOPOLOGY | Feature.FLUSH | Feature.CONFIG_WCE
    bits |= Feature.RO if readonly else Feature.WRITE_ZEROES
    if discard:
        bits |= Feature.DISCARD
    if queues > 1:
        bits |= Feature.MQ
    return bits


class Request(enum.IntEnum):
    """Types of request, §5.2.6."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Status(enum.IntEnum):
    """The last byte of every request, §5.2.6."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


@dataclass(frozen=True)
class Geometry:
    """What a back end is made of; all sizes in bytes, block sizes powers of two.

    `logical` is the smallest unit of I/O, `physical` what the medium writes at once, `optimal` what it likes best (0: nothing
    in particular); `discard` is the granularity of discards.
    """

    logical: int = SECTOR
    physical: int = 4096
    optimal: int = 0
    discard: int = 4096


_CONFIG = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")  # struct virtio_blk_config up to unused1, §5.2.4
_CAPACITY = struct.Struct("<Q")
_WRITEBACK = 32


LASTING_CONFIG = ((8, _WRITEBACK - 8), (_WRITEBACK + 1, _CONFIG.size - _WRITEBACK - 1))
"""All but the capacity and the cache mode."""


class BlkConfigSpace:
    """The configuration space (§5.2.4). `capacity` is in sectors of 512 bytes; `write_back` is the cache mode."""

    def __init__(
        self,
        geometry: Geometry,
        *,
        capacity: int,
        seg_max: int,
        num_queues: int,
        max_segment_sectors: int,
        max_segments: int,
        may_unmap: bool,
    ) -> None:
        physical_exponent = max(geometry.physical // geometry.logical, 1).bit_length() - 1
        self.write_back = True
        self._image = bytearray(
            _CONFIG.pack(
                capacity,
                0,  # size_max: not offered
                seg_max,
                0,  # geometry: not offered
                0,
                0,
                geometry.logical,
                physical_exponent,
                0,  # alignment_offset
                min(max(geometry.physical // geometry.logical, 1), 0xFFFF),  # min_io_size in logical blocks
                geometry.optimal // geometry.logical,
                1,
                num_queues,
                max_segment_sectors,
                max_segments,
                max(geometry.discard // SECTOR, 1),
                max_segment_sectors,
                max_segments,
                may_unmap,
            )
        )

    @property
    def capacity(self) -> int:
        """Sectors of 512 bytes."""
        return int(_CAPACITY.unpack_from(self._image)[0])

    @capacity.setter
    def capacity(self, sectors: int) -> None:
        _CAPACITY.pack_into(self._image, 0, sectors)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`; zeros beyond the end."""
        return bytes(self._image[offset : offset + size]).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Only `writeback` can be written (§5.2.5); all else is read-only and ignores it."""
        at = _WRITEBACK - offset
        if 0 <= at < len(data):
            self.set_write_back(data[at] != 0)

    def set_write_back(self, on: bool) -> None:
        """Set the cache mode and show it to the driver."""
        self.write_back = on
        self._image[_WRITEBACK] = on
