"""A network for a sandbox whose host lends it nothing but sockets: passt, which needs no privilege.

The guest has addresses that are of nobody else, and its init sets them, so that no time goes by with DHCP. It reaches what this
host reaches, over IPv4 and IPv6; the host itself it does not reach by the gateway's address, unless that is asked for.
"""

from __future__ import annotations

from aiovmm.devices.virtio.net.device import NetDevice
from aiovmm.devices.virtio.net.passt import PasstBackend
from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import dataclass

__all__ = ["Network"]

_ADDRESSES = ("10.0.2.15/24", "fd00:a10::15/64")
_GATEWAYS = ("10.0.2.2", "fe80::2")
_RESOLVERS = ("10.0.2.3", "fd00:a10::3")


@dataclass(frozen=True, kw_only=True)
class Network:
    """`host`: the guest reaches the host's loopback services at its gateway's address. `allow`: networks and names that it may
    reach; None is all that the host reaches. passt filters nothing, so that a list is refused and not ignored: a network
    namespace with a firewall, and a TAP in it (NetConfig(tap=)), can enforce one."""

    host: bool = False
    allow: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.allow is not None:
            hint = "leave it out, or give the guest a TAP in a network namespace with a firewall: nets=(NetConfig(tap=...),)"
            raise ConfigError(
                "network.allow", "cannot be enforced: passt lets a guest reach all that the host reaches", hint
            )

    def device(self) -> NetDevice:
        """The card, with a passt of its own that is started with the guest."""
        arguments = ["--address", _ADDRESSES[0].partition("/")[0], "--netmask", "24", "--gateway", _GATEWAYS[0]]
        arguments += ["--address", _ADDRESSES[1].partition("/")[0], "--gateway", _GATEWAYS[1]]
        for address in _RESOLVERS:
            arguments += ["--dns-forward", address]
        if not self.host:
            arguments.append("--no-map-gw")
        return NetDevice(PasstBackend([*arguments, "--no-dhcp", "--no-dhcpv6", "--no-ra"]), name="net")

    @property
    def words(self) -> list[str]:
        """What the guest's init is told."""
        found = [f"sandbox.address={address}" for address in _ADDRESSES]
        found += [f"sandbox.gateway={address}" for address in _GATEWAYS]
        return [*found, f"sandbox.dns={_RESOLVERS[0]}"]
