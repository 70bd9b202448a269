"""A request on the wire (VIRTIO 1.2 §5.19.6): type in, return value out, 4 bytes each. Pure."""

from __future__ import annotations

import struct

from aiovmm.errors import ChainError
from aiovmm.virtqueue.chain import Chain

__all__ = ["FAILURE", "SUCCESS", "config_space", "is_flush"]

SUCCESS = struct.pack("<i", 0)
FAILURE = struct.pack("<i", -1)
_FLUSH = 0


def config_space(start: int, size: int) -> bytes:
    """`struct virtio_pmem_config` (§5.19.4): guest-physical address and size in bytes."""
    return struct.pack("<QQ", start, size)


def is_flush(chain: Chain) -> bool:
    """Whether a request asks for a flush; no other type is known. Raises ChainError for one that cannot be answered."""
    if chain.readable_size < 4 or chain.writable_size < 4:
        raise ChainError("a request has 4 bytes to read and room for 4", chain.head)
    return int.from_bytes(chain.read(4), "little") == _FLUSH
