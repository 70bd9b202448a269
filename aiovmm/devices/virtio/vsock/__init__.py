"""virtio-vsock: `VsockDevice` for the machine, `Vsock` with its streams for the program.

packet, connection and muxer are the protocol, pure; link, switch and poller join it to sockets; from_guest, to_guest
and rings to virtqueues;
hybrid (unix sockets) and streams (asyncio) are the two ways in for the host.
"""

from __future__ import annotations

from aiovmm.devices.virtio.vsock.counters import VsockCounters
from aiovmm.devices.virtio.vsock.device import VsockDevice
from aiovmm.devices.virtio.vsock.streams import Vsock, VsockServer

__all__ = ["Vsock", "VsockCounters", "VsockDevice", "VsockServer"]
