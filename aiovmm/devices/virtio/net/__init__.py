"""virtio-net: the device, and back ends on a TAP, a socket or passt."""

from __future__ import annotations

from aiovmm.devices.virtio.net.backend import NetBackend
from aiovmm.devices.virtio.net.counters import NetCounters
from aiovmm.devices.virtio.net.device import NetDevice
from aiovmm.devices.virtio.net.features import Offloads
from aiovmm.devices.virtio.net.mac import derive_mac, format_mac, parse_mac, random_mac
from aiovmm.devices.virtio.net.passt import PasstBackend
from aiovmm.devices.virtio.net.sockets import SocketBackend
from aiovmm.devices.virtio.net.tap import HostAddress, TapBackend

__all__ = [
    "HostAddress",
    "NetBackend",
    "NetCounters",
    "NetDevice",
    "Offloads",
    "PasstBackend",
    "SocketBackend",
    "TapBackend",
    "derive_mac",
    "format_mac",
    "parse_mac",
    "random_mac",
]
