"""Configuration of a network interface of the host, by the classic ioctls (netdevice(7))."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from types import TracebackType
from typing import TYPE_CHECKING, Self

from aiovmm.errors import HostError

if TYPE_CHECKING:
    from ipaddress import IPv4Interface, IPv6Interface

__all__ = ["Interface", "is_there"]

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_SIOCGIFMTU = 0x8921
_SIOCSIFMTU = 0x8922
_SIOCSIFHWADDR = 0x8924
_SIOCGIFINDEX = 0x8933
_IFF_UP = 1
_ARPHRD_ETHER = 1
_NO_IPV6 = "IPv6 is off on this host, or on this interface: see the sysctls net.ipv6.conf.*.disable_ipv6"
_IPV6_HINTS = dict.fromkeys((errno.EAFNOSUPPORT, errno.EACCES, errno.ENODEV), _NO_IPV6)


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

    def set_address(self, address: IPv4Interface | IPv6Interface) -> None:
        """An address and its netmask. An IPv6 address comes to those that the interface has."""
        if address.version == 6:
            self._add_ipv6(address)
            return
        self._call(f"set the address {address.ip}", _SIOCSIFADDR, _sockaddr(address.ip.packed))
        self._call(f"set the netmask {address.netmask}", _SIOCSIFNETMASK, _sockaddr(address.netmask.packed))

    def _add_ipv6(self, address: IPv4Interface | IPv6Interface) -> None:
        """ipv6(7): struct in6_ifreq."""
        (index,) = struct.unpack_from("=i", self._call("find its number", _SIOCGIFINDEX, b""))
        request = struct.pack("=16sIi", address.ip.packed, address.network.prefixlen, index)
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ipv6:
                fcntl.ioctl(ipv6, _SIOCSIFADDR, request)
        except OSError as exc:
            if exc.errno != errno.EEXIST:  # it has that address
                raise self._failed(f"add the address {address}", exc, _IPV6_HINTS) from exc

    def up(self) -> None:
        """Bring it up, if it is not."""
        (flags,) = struct.unpack_from("=H", self._call("read the flags", _SIOCGIFFLAGS, b""))
        if not flags & _IFF_UP:
            self._call("bring it up", _SIOCSIFFLAGS, struct.pack("=H", flags | _IFF_UP))

    def _call(self, what: str, request: int, argument: bytes) -> bytes:
        try:
            answer = fcntl.ioctl(
                self._socket, request, os.fsencode(self.name).ljust(16, b"\0") + argument.ljust(24, b"\0")
            )
        except OSError as exc:
            raise self._failed(what, exc, {}) from exc
        return answer[16:]

    def _failed(self, what: str, exc: OSError, hints: dict[int, str]) -> HostError:
        number = exc.errno or 0
        hint = hints.get(number) or {errno.EPERM: "it needs CAP_NET_ADMIN; as root, do it before with `ip`"}.get(
            number, ""
        )
        return HostError(f"{self.name}: {what}", number, hint)


def is_there(name: str) -> bool:
    """Whether the calling thread's network namespace has one called so."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _sockaddr(ip: bytes) -> bytes:
    return struct.pack("=HH4s", socket.AF_INET, 0, ip)
