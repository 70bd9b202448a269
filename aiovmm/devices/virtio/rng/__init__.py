"""virtio-rng: entropy for the guest from a file of the host."""

from __future__ import annotations

from aiovmm.devices.virtio.rng.device import REQUEST_LIMIT, RngDevice
from aiovmm.devices.virtio.rng.source import EntropySource, open_source

__all__ = ["REQUEST_LIMIT", "EntropySource", "RngDevice", "open_source"]
