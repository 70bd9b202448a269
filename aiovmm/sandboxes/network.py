"""A network for a sandbox whose host lends it nothing but sockets: passt, which needs no privilege.

The guest has addresses that are of nobody else, and its init sets them, so that no time goes by with DHCP. It reaches what this
host reaches, over IPv4 and IPv6, or what of it is allowed; the host itself it does not reach, unless that is asked for. passt
filters nothing: that is done by what is between it and the guest's card.
"""

from __future__ import annotations

from functools import partial

from aiovmm.devices.virtio.net.device import NetDevice
from aiovmm.devices.virtio.net.passt import PasstBackend
from aiovmm.runtime.dataclass import dataclass
from aiovmm.sandboxes.firewall import Firewall, Rules, relay
from aiovmm.sandboxes.firewall.own import is_own

__all__ = ["Network"]

_ADDRESSES = ("10.0.2.15/24", "fd00:a10::15/64")
_GATEWAYS = ("10.0.2.2", "fe80::2")
_RESOLVERS = ("10.0.2.3", "fd00:a10::3")


@dataclass(frozen=True, kw_only=True)
class Network:
    """`allow`: networks ("10.1.0.0/16", "2001:db8::/32", "192.0.2.1") and names ("debian.org", "*.debian.org") that the guest may
    reach, and no others; None is all. `host`: it reaches this host, too: its loopback services at the gateway's address, and its
    other addresses as far as they are allowed; else none of it. Raises ConfigError."""

    host: bool = False
    allow: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        Rules(self.allow)

    def device(self) -> NetDevice:
        """The card, with a passt of its own that is started with the guest, and the filter before it."""
        arguments = ["--address", _ADDRESSES[0].partition("/")[0], "--netmask", "24", "--gateway", _GATEWAYS[0]]
        arguments += ["--address", _ADDRESSES[1].partition("/")[0], "--gateway", _GATEWAYS[1]]
        for address in _RESOLVERS:
            arguments += ["--dns-forward", address]
        if not self.host:
            arguments.append("--no-map-gw")
        filtered = None if self.host and self.allow is None else partial(relay, self.firewall())
        return NetDevice(PasstBackend([*arguments, "--no-dhcp", "--no-dhcpv6", "--no-ra"], relay=filtered), name="net")

    def firewall(self) -> Firewall:
        """What is let through."""
        return Firewall(
            Rules(self.allow),
            guest=[address.partition("/")[0] for address in _ADDRESSES],
            gateways=_GATEWAYS,
            resolvers=_RESOLVERS,
            is_own=is_own,
            host=self.host,
        )

    @property
    def words(self) -> list[str]:
        """What the guest's init is told."""
        found = [f"sandbox.address={address}" for address in _ADDRESSES]
        found += [f"sandbox.gateway={address}" for address in _GATEWAYS]
        return [*found, f"sandbox.dns={_RESOLVERS[0]}"]
