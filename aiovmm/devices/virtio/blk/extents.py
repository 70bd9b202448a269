"""The payload of DISCARD and WRITE_ZEROES: segments of sectors (VIRTIO 1.2 §5.2.6), checked whole before any is carried out."""

from __future__ import annotations

import struct

from aiovmm.devices.virtio.blk.protocol import MAX_SEGMENT_SECTORS, MAX_SEGMENTS, SECTOR, Request, Status
from aiovmm.runtime.dataclass import dataclass

__all__ = ["PAYLOAD_MAX", "Extent", "parse_extents"]

_SEGMENT = struct.Struct("<QII")  # struct virtio_blk_discard_write_zeroes
_UNMAP = 1
PAYLOAD_MAX = MAX_SEGMENTS * _SEGMENT.size


@dataclass(frozen=True)
class Extent:
    """`size` bytes at `offset`; `unmap` if the space may be given back (WRITE_ZEROES only)."""

    offset: int
    size: int
    unmap: bool


def parse_extents(kind: Request, payload: bytes, capacity: int) -> list[Extent] | Status:
    """The extents that a request of `kind` (DISCARD or WRITE_ZEROES) names, or the status that refuses it.

    `payload` is all of the request's data, `capacity` in sectors.
    """
    if not payload or len(payload) % _SEGMENT.size or len(payload) > PAYLOAD_MAX:
        return Status.IOERR
    extents = []
    for sector, count, flags in _SEGMENT.iter_unpack(payload):
        # "MUST set status to UNSUPP if the unmap bit is set for discard, or any unknown flag" (§5.2.6.2)
        if flags & ~_UNMAP or (flags and kind is Request.DISCARD):
            return Status.UNSUPP
        if count > MAX_SEGMENT_SECTORS or sector > capacity or count > capacity - sector:
            return Status.IOERR
        if count:
            extents.append(Extent(sector * SECTOR, count * SECTOR, bool(flags & _UNMAP)))
    return extents
