"""A connected socket as back end: no privilege, no interface on the host. For tests, embedders, and links between guests."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from aiovmm.devices.virtio.net.backend import NetBackend
from aiovmm.devices.virtio.net.port import Port, PortKind
from aiovmm.errors import ConfigError

__all__ = ["SocketBackend"]


class SocketBackend(NetBackend):
    """Frames over `sock`, which is the back end's from now on.

    SOCK_DGRAM and SOCK_SEQPACKET: one frame a message. With `vnet_hdr` each begins with a struct virtio_net_hdr_v1, in both
    directions; the other end must then take what the driver negotiates, as another guest's network device does.
    SOCK_STREAM: each frame after its length in 4 bytes, big-endian, as QEMU's `-netdev stream` and passt have it.
    """

    def __init__(self, sock: socket.socket, *, vnet_hdr: bool = False, mtu: int | None = None) -> None:
        kind = PortKind.VNET if vnet_hdr else PortKind.PLAIN
        if sock.type == socket.SOCK_STREAM:
            if vnet_hdr:
                raise ConfigError("net.vnet_hdr", "a stream carries bare frames", "use SOCK_SEQPACKET")
            kind = PortKind.STREAM
        sock.setblocking(False)
        self.vnet_hdr = vnet_hdr
        self.mtu = mtu
        self._socket = sock
        self._ports = [Port(sock.fileno(), kind, socket=True, zero_ends=sock.type != socket.SOCK_DGRAM)]

    @property
    def ports(self) -> Sequence[Port]:
        """The one."""
        return self._ports

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Close the socket."""
        self._ports = []
        self._socket.close()
