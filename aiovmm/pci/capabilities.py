"""The bodies of the capabilities we offer (what follows a capability's id and next bytes)."""

from __future__ import annotations

import enum
import struct

from aiovmm.runtime.dataclass import dataclass

__all__ = ["MSIX", "VENDOR", "VirtioCap", "VirtioCapType", "msix"]

VENDOR = 0x09
MSIX = 0x11
_VIRTIO_CAP_SIZE = 16  # struct virtio_pci_cap


class VirtioCapType(enum.IntEnum):
    """cfg_type of a virtio structure, VIRTIO 1.2, 4.1.4."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI_CFG = 5
    SHARED_MEMORY = 8


@dataclass(frozen=True)
class VirtioCap:
    """Where a virtio structure lies: `length` bytes at `offset` of BAR `bar`. VIRTIO 1.2, 4.1.4 (struct virtio_pci_cap)."""

    type: VirtioCapType
    bar: int
    offset: int
    length: int
    id: int = 0

    def body(self, extra: bytes = b"") -> bytes:
        """The capability without its first two bytes; `extra` follows the common part (multiplier, data window)."""
        size = _VIRTIO_CAP_SIZE + len(extra)
        return struct.pack("<BBBB2xII", size, self.type, self.bar, self.id, self.offset, self.length) + extra


def msix(vectors: int, *, bar: int, table: int, pba: int) -> tuple[bytes, bytes]:
    """Body and write mask of an MSI-X capability: `vectors` (1..2048), offsets in `bar`. PCI Local Bus 3.0, 6.8.2."""
    body = struct.pack("<HII", vectors - 1, table | bar, pba | bar)
    return body, struct.pack("<H", 0xC000)  # enable and function mask
