"""Addresses of the host's side of a network link. Imported by those who give one: `ipaddress` costs 4 ms of a start."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_address

from aiovmm.errors import ConfigError

__all__ = ["host_interface"]


def host_interface(ip: str, mask: str) -> IPv4Interface | IPv6Interface:
    """An address with its network. `mask` is a netmask, `255.255.255.0` or `ffff:ffff:ffff:ffff::`, or the length of one, `24`.
    Raises ConfigError for what is neither, and for addresses that no interface can have."""
    try:
        address = ip_address(ip)
    except ValueError as exc:
        raise ConfigError("net.ip", str(exc)) from None
    everybody = address == IPv4Address("255.255.255.255")  # RFC 919
    if address.is_unspecified or address.is_multicast or everybody or "%" in ip:
        raise ConfigError("net.ip", f"{ip!r} is not the address of an interface")
    kind = IPv4Interface if address.version == 4 else IPv6Interface
    return kind((int(address), _prefix(mask, address.version, address.max_prefixlen)))


def _prefix(mask: str, version: int, width: int) -> int:
    if mask.isascii() and mask.isdigit() and len(mask) <= 3:
        length = int(mask)
    else:
        length = _ones(mask, version, width)
    if not 0 <= length <= width:
        hint = (
            "a netmask like 255.255.255.0 or ffff:ffff:ffff:ffff::, of the same family as ip=, or its length, like 24"
        )
        raise ConfigError("net.mask", f"{mask!r} is not a netmask for an IPv{version} address", hint)
    return length


def _ones(mask: str, version: int, width: int) -> int:
    """How many one bits a netmask begins with; -1 if it is none."""
    try:
        address = ip_address(mask)
    except ValueError:
        return -1
    zeros = int(address) ^ (1 << width) - 1
    return width - zeros.bit_length() if address.version == version and not zeros & (zeros + 1) else -1
