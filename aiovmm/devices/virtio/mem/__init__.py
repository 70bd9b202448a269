"""virtio-mem (VIRTIO 1.2 §5.15): memory that a running guest is given, and gives back, in blocks."""

from __future__ import annotations

from aiovmm.devices.virtio.mem.device import MemDevice
from aiovmm.devices.virtio.mem.protocol import BLOCK_SIZE

__all__ = ["BLOCK_SIZE", "MemDevice"]
