"""What a block driver does with a queue of the simulator, for the tests of the disk."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from aiovmm.devices.virtio.blk import Status
from aiovmm.devices.virtio.blk.protocol import Request
from aiovmm.testing import Harness

__all__ = ["allocated", "contents", "get_id", "header", "read", "segments", "split", "submit", "write"]


def header(kind: int, sector: int = 0) -> bytes:
    """struct virtio_blk_req, VIRTIO 1.2 §5.2.6."""
    return struct.pack("<IIQ", kind, 0, sector)


def segments(*extents: tuple[int, int, int]) -> bytes:
    """(sector, count, flags) of discards and write-zeroes."""
    return b"".join(struct.pack("<QII", *extent) for extent in extents)


async def submit(
    h: Harness, kind: int, sector: int = 0, data: bytes = b"", room: int = 0, *, queue: int = 0
) -> tuple[Status, bytes]:
    """One request; its status and what was written before the status byte, as far as the used length covers it."""
    q = h.queues[queue]
    q.add([header(kind, sector), *([data] if data else [])], [*([room] if room else []), 1])
    q.kick()
    (used,) = await q.used()
    status = Status(used.buffers[-1][-1])
    written = b"".join(used.buffers)[: min(used.length, room)]
    if status is Status.OK:
        assert used.length == len(written) + 1 or len(written) < room, "the status byte is not covered by the length"
    return status, written


async def read(h: Harness, sector: int, size: int, *, queue: int = 0) -> bytes:
    """Data that can be read without an error."""
    status, data = await submit(h, Request.IN, sector, room=size, queue=queue)
    assert status is Status.OK
    assert len(data) == size
    return data


async def write(h: Harness, sector: int, data: bytes, *, queue: int = 0) -> None:
    """Write without an error."""
    assert await submit(h, Request.OUT, sector, data, queue=queue) == (Status.OK, b"")


async def get_id(h: Harness) -> bytes:
    """The serial number, as it comes."""
    status, data = await submit(h, Request.GET_ID, room=20)
    assert status is Status.OK
    return data


def split(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """`data` in pieces of the given sizes, and the rest."""
    parts, at = [], 0
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    return [part for part in [*parts, data[at:]] if part]


def contents(path: Path) -> bytes:
    """All of an image."""
    return path.read_bytes()


def allocated(path: Path) -> int:
    """Sectors that an image takes up."""
    return path.stat().st_blocks
