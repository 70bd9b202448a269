"""The host bridge of a segment: device 0 of its bus, with nothing behind it but an identity."""

from __future__ import annotations

from functools import cache

from aiovmm.pci.config_space import ConfigSpace, Identity
from aiovmm.pci.function import PciFunction

__all__ = ["host_bridge"]

_INTEL = 0x8086
_VIRTUAL_BRIDGE = 0x0D57  # the reference monitor's
_CLASS_HOST_BRIDGE = 0x060000


@cache
def _laid_out() -> ConfigSpace:
    return ConfigSpace(Identity(_INTEL, _VIRTUAL_BRIDGE, _CLASS_HOST_BRIDGE))


def host_bridge() -> PciFunction:
    """A host bridge without BARs or capabilities."""
    return PciFunction("host-bridge", _laid_out().copy())
