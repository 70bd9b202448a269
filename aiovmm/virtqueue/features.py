"""Feature bits that belong to the transport and the rings, not to a kind of device (VIRTIO 1.2 §6)."""

from __future__ import annotations

__all__ = [
    "ACCESS_PLATFORM",
    "EVENT_IDX",
    "INDIRECT_DESC",
    "RING_FEATURES",
    "RING_RESET",
    "VERSION_1",
]

INDIRECT_DESC = 1 << 28
EVENT_IDX = 1 << 29
VERSION_1 = 1 << 32
ACCESS_PLATFORM = 1 << 33  # the device's addresses are translated (an IOMMU stands in front)
RING_RESET = 1 << 40

RING_FEATURES = VERSION_1 | EVENT_IDX | INDIRECT_DESC
"""What every device of ours offers besides its own bits."""
