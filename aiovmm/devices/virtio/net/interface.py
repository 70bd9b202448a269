"""Configuration of a network interface of the host, by the classic ioctls (netdevice(7))."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from types import TracebackType
from typing import Self

from aiovmm.errors import HostError

__all__ = ["Interface"]

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_SIOCGIFMTU = 0x8921
_SIOCSIFMTU = 0x8922
_SIOCSIFHWADDR = 0x8924
_IFF_UP = 1
_ARPHRD_ETHER = 1


class Interface:
    """The interface `name` of the calling thread's network namespace; a context manager. Methods raise HostError."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    @property
    def mtu(self) -> int:
        """In bytes."""
        return int(struct.unpack_from("=i", self._call("read the MTU", _SIOCGIFMTU, b""))[0])

    def set_mtu(self, mtu: int) -> None:
        """In bytes."""
        if self.mtu != mtu:
            self._call(f"set the MTU to {mtu}", _SIOCSIFMTU, struct.pack("=i", mtu))

    def set_mac(self, mac: bytes) -> None:
        """The host's own address on this link."""
        self._call("set the MAC address", _SIOCSIFHWADDR, struct.pack("=H", _ARPHRD_ETHER) + mac)

    def set_address(self, ip: str, mask: str) -> None:
        """An IPv4 address and its netmask, both dotted."""
        self._call(f"set the address {ip}", _SIOCSIFADDR, _sockaddr(ip))
        self._call(f"set the netmask {mask}", _SIOCSIFNETMASK, _sockaddr(mask))

    def up(self) -> None:
        """Bring it up, if it is not."""
        (flags,) = struct.unpack_from("=H", self._call("read the flags", _SIOCGIFFLAGS, b""))
        if not flags & _IFF_UP:
            self._call("bring it up", _SIOCSIFFLAGS, struct.pack("=H", flags | _IFF_UP))

    def _call(self, what: str, request: int, argument: bytes) -> bytes:
        try:
            answer = fcntl.ioctl(self._socket, request, self.name.encode().ljust(16, b"\0") + argument.ljust(24, b"\0"))
        except OSError as exc:
            hint = "it needs CAP_NET_ADMIN; as root, do it before with `ip`" if exc.errno == errno.EPERM else ""
            raise HostError(f"{self.name}: {what}", exc.errno or 0, hint) from exc
        return answer[16:]


def _sockaddr(ip: str) -> bytes:
    return struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(ip))
