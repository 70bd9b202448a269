"""Whether a device is wired in: asked of the code that plugs devices, with a configuration that wants it. Opens nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from aiovmm.config import ConsoleConfig, ConsoleMode, PayloadConfig, RngConfig, VMConfig
from aiovmm.console import Console
from aiovmm.errors import ConfigError
from aiovmm.machine.devices import plug_configured
from aiovmm.machine.parts import MachineParts

__all__ = ["has_iommu", "is_wired"]

_IOMMU = 23  # VIRTIO 1.2 §5
_NOTHING = VMConfig(PayloadConfig(Path("kernel")), rng=None, console=ConsoleConfig(ConsoleMode.OFF))


def is_wired(**changes: Any) -> bool:
    """Whether the machine plugs a device for `changes` to a configuration without any."""
    parts = _plugged(changes)
    return parts is not None and (bool(parts.plugged) or parts.passthrough is not None)


def has_iommu() -> bool:
    """Whether a device can be put behind an IOMMU."""
    parts = _plugged({"rng": RngConfig(iommu=True)})
    return parts is not None and any(p.device.device_id == _IOMMU for p in parts.plugged)


def _plugged(changes: dict[str, Any]) -> MachineParts | None:
    """What the machine is given; None if it refuses."""
    parts = MachineParts(
        _NOTHING.with_changes(changes), cast(Any, None), Console(), Console(), lambda _: None, lambda _: None
    )
    try:
        plug_configured(parts)
    except ConfigError:
        return None
    return parts
