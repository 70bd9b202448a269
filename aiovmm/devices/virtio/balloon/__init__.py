"""virtio-balloon (VIRTIO 1.2 §5.5): memory that a running guest gives back to the host, because it is asked to or of itself."""

from __future__ import annotations

from aiovmm.devices.virtio.balloon.device import BalloonDevice
from aiovmm.devices.virtio.balloon.protocol import BalloonStats

__all__ = ["BalloonDevice", "BalloonStats"]
