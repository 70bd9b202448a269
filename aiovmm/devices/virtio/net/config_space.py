"""The configuration space of a network device (VIRTIO 1.2 §5.1.4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["ANNOUNCE", "LINK_UP", "NetConfigSpace"]

LINK_UP = 1  # VIRTIO_NET_S_LINK_UP
ANNOUNCE = 2  # VIRTIO_NET_S_ANNOUNCE
_LAYOUT = struct.Struct("<6sHHH")  # mac, status, max_virtqueue_pairs, mtu


@dataclass
class NetConfigSpace:
    """Its fields; `mtu` is 0 where the feature is not offered. All are read-only for the driver."""

    mac: bytes
    status: int = LINK_UP
    max_virtqueue_pairs: int = 1
    mtu: int = 0

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`; zeros beyond the end."""
        data = _LAYOUT.pack(self.mac, self.status, self.max_virtqueue_pairs, self.mtu)
        return data[offset : offset + size].ljust(size, b"\0")
