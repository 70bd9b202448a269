"""virtio-blk (VIRTIO 1.2 §5.2): disks from raw images and block devices.

The data path is native (native/src/blk*.c): requests are parsed and carried out by io_uring straight on guest memory, or by
threads where io_uring is refused. Python decides what the disk is and can do, and handles what is rare.
"""

from __future__ import annotations

from aiovmm.devices.virtio.blk.counters import BlkCounters, Latency
from aiovmm.devices.virtio.blk.device import BlkDevice
from aiovmm.devices.virtio.blk.image import DiskImage
from aiovmm.devices.virtio.blk.protocol import Geometry, Status

__all__ = ["BlkCounters", "BlkDevice", "DiskImage", "Geometry", "Latency", "Status"]
