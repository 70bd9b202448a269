"""Names of the feature bits that each kind of device offers at most, taken from the code that offers them."""

from __future__ import annotations

import re
from types import ModuleType

__all__ = [
    "blk_features",
    "console_features",
    "names_of",
    "net_features",
    "ring_features",
    "vhost_blk_features",
    "vhost_net_features",
]

_ALL = (1 << 64) - 1
_NAME = re.compile(r"(?:F_)?([A-Z][A-Z0-9_]*)")


def names_of(bits: int, module: ModuleType) -> tuple[str, ...]:
    """The single-bit constants of `module` that are set in `bits`, in order of the bits. Raises ValueError for one without."""
    named: dict[int, str] = {}
    for attribute, value in vars(module).items():
        match = _NAME.fullmatch(attribute)
        if match and type(value) is int and value.bit_count() == 1:
            named.setdefault(value, match[1])
    single = [1 << n for n in range(bits.bit_length()) if bits >> n & 1]
    if unknown := [hex(bit) for bit in single if bit not in named]:
        raise ValueError(f"{module.__name__} has no name for {', '.join(unknown)}")
    return tuple(named[bit] for bit in single)


def ring_features() -> tuple[str, ...]:
    """What every device that is served here offers."""
    from aiovmm.virtqueue import features

    return names_of(features.RING_FEATURES, features)


def blk_features() -> tuple[str, ...]:
    """Over all images: one that is read only, one that can give space back, with many queues."""
    from aiovmm.devices.virtio.blk.protocol import Feature, offered

    bits = offered(readonly=True, discard=False, queues=1) | offered(readonly=False, discard=True, queues=2)
    return tuple(bit.name for bit in Feature if bit & bits and bit.name is not None)


def net_features() -> tuple[str, ...]:
    """On a TAP of a kernel that can segment UDP, with many queue pairs."""
    from aiovmm.devices.virtio.net import features

    bits = features.offered(pairs=2, queue_size=256, mtu=True, vnet_hdr=True, uso=True)
    return names_of(bits, features)


def vhost_blk_features() -> tuple[str, ...]:
    """Of a back end that has them all."""
    from aiovmm.devices.virtio.blk.protocol import Feature
    from aiovmm.devices.virtio.vhost_user import VhostUserBlk

    bits = VhostUserBlk.known_features
    names = {1 << 4: "GEOMETRY"} | {int(bit): bit.name for bit in Feature}
    return tuple(names[1 << n] or "" for n in range(bits.bit_length()) if bits >> n & 1)


def vhost_net_features() -> tuple[str, ...]:
    """Of a back end that has them all, with many queue pairs."""
    from aiovmm.devices.virtio.net import features
    from aiovmm.devices.virtio.vhost_user import VhostUserNet

    return names_of(VhostUserNet("socket", pairs=2, mtu=1500).select_features(_ALL), features)


def console_features() -> tuple[str, ...]:
    """Fixed."""
    from aiovmm.devices.virtio.console import device

    return names_of(device.ConsoleDevice.features, device)
