"""Who a guest may send from: its card's MAC address and, where they are known, its IP addresses (native/src/tap_own.h)."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, ip_network
from typing import Any

from aiovmm.config.net import check_guest_addresses
from aiovmm.native import ffi

__all__ = ["own_addresses"]

_MAPPED = bytes(10) + b"\xff\xff"  # before an IPv4 address


def own_addresses(mac: bytes, addresses: Sequence[str]) -> Any:
    """`struct avmm_net_own *` of 6 bytes and of addresses or networks as text; none of these: any. Raises ConfigError."""
    check_guest_addresses(addresses)
    own = ffi.new("struct avmm_net_own *")
    own.mac = mac
    own.any_ip = not addresses
    own.n_prefixes = len(addresses)
    for prefix, text in zip(own.prefixes, addresses, strict=False):
        network = ip_network(text)
        mapped = isinstance(network, IPv4Network)
        prefix.address = (_MAPPED if mapped else b"") + network.network_address.packed
        prefix.bits = network.prefixlen + 96 * mapped
    return own
