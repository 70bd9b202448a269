"""virtio-rtc: the host's clock as a device that a guest can set its own by."""

from __future__ import annotations

from aiovmm.devices.virtio.rtc.device import RtcDevice

__all__ = ["RtcDevice"]
