"""virtio-console: hvc0, a byte stream with the size of its terminal."""

from __future__ import annotations

from aiovmm.devices.virtio.console.device import ConsoleDevice

__all__ = ["ConsoleDevice"]
