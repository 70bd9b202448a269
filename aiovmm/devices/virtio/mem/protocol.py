"""The configuration space, requests and answers of virtio-mem, VIRTIO 1.2 §5.15. Pure."""

from __future__ import annotations

import enum
import struct

from aiovmm.errors import ChainError
from aiovmm.runtime.dataclass import dataclass

__all__ = [
    "ACPI_PXM",
    "BLOCK_SIZE",
    "REQUEST_SIZE",
    "UNPLUGGED_INACCESSIBLE",
    "Answer",
    "Kind",
    "Request",
    "Sizes",
    "answer",
    "config_space",
    "parse",
]

ACPI_PXM = 1 << 0
"""The configuration space says which NUMA node it is in (§5.15.3)."""
UNPLUGGED_INACCESSIBLE = 1 << 1
"""The driver does not touch what is not plugged, not even to read it (§5.15.3)."""

BLOCK_SIZE = 2 << 20
"""Bytes: a huge page, so that one that is given back is one of the host's again."""

_REQUEST = struct.Struct("<H6xQH6x")
REQUEST_SIZE = _REQUEST.size
_STATE_ANSWER = struct.Struct("<H6xH")
_CONFIG = struct.Struct("<QH6xQQQQQ")


class Kind(enum.IntEnum):
    """What a driver asks for (§5.15.6)."""

    PLUG = 0
    UNPLUG = 1
    UNPLUG_ALL = 2
    STATE = 3


class Answer(enum.IntEnum):
    """What it is told."""

    ACK = 0
    NACK = 1  # not now: more than is asked for
    BUSY = 2
    ERROR = 3  # never: those blocks cannot be, or are so already


@dataclass(frozen=True)
class Request:
    """`blocks` of them from guest-physical `address` on; both mean nothing for UNPLUG_ALL."""

    kind: Kind
    address: int
    blocks: int


@dataclass(frozen=True)
class Sizes:
    """In bytes: `plugged` now, `requested` by the host, `region` at most, from guest-physical `start` on."""

    start: int
    region: int
    plugged: int
    requested: int


def config_space(sizes: Sizes, node: int = 0) -> bytes:
    """`struct virtio_mem_config`. All of the region is usable at any time. `node` means something with ACPI_PXM."""
    return _CONFIG.pack(BLOCK_SIZE, node, sizes.start, sizes.region, sizes.region, sizes.plugged, sizes.requested)


def parse(data: bytes) -> Request | None:
    """A request; None if its type is not known. Raises ChainError for what is too short to be one."""
    if len(data) < REQUEST_SIZE:
        raise ChainError(f"a request to virtio-mem has {REQUEST_SIZE} bytes, not {len(data)}")
    kind, address, blocks = _REQUEST.unpack_from(data)
    return Request(Kind(kind), address, blocks) if kind <= Kind.STATE else None


def answer(result: Answer, state: int = 0) -> bytes:
    """`struct virtio_mem_resp`."""
    return _STATE_ANSWER.pack(result, state)
