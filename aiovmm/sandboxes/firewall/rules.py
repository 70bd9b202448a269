"""A list of networks and names, and which addresses it allows. Pure.

Some addresses are never a guest's to reach, whatever the list says, and some are not meant by a network that is much larger:
nobody who allows 0.0.0.0/0 means the cloud's metadata service. An address that is told by a name server for an allowed name has
to be one of the Internet's: else whoever has that name could point it to what is around this host. Source: IANA's registries of
special-purpose addresses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiovmm.errors import ConfigError

__all__ = ["Rules", "spellings"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NEVER = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "fe80::/10", "ff00::/8"),  # with those that are IPv4 in disguise
    )
)
_BY_NAME = tuple(
    ip_network(text)
    for text in (
        *("169.254.0.0/16", "fd00:ec2::254/128"),  # link-local, and Amazon's metadata service
        *("168.63.129.16", "100.100.100.200", "fd20:ce::254"),  # Azure's, Alibaba's, Google's
        *("192.0.0.192", "fd00:c1::a9fe:a9fe", "fd00:42::42"),  # Oracle's, Scaleway's
    )
)
_TRANSLATED = tuple(ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
_CARRIED = ((ip_network("64:ff9b::/96"), 12), (ip_network("2002::/16"), 2))  # RFC 6052, 3056: and where in it, in bytes
_NAME = re.compile(rb"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_LONGEST = 253


class Rules:
    """`allow`: networks ("10.1.0.0/16", "2001:db8::/32", "192.0.2.1") and names ("debian.org"; "*.debian.org" is all below it).
    None allows all. Raises ConfigError."""

    def __init__(self, allow: Sequence[str] | None) -> None:
        self._all_names = allow is None
        self._networks: list[Network] = [ip_network("0.0.0.0/0"), ip_network("::/0")] if allow is None else []
        self._names: set[bytes] = set()
        self._parents: set[bytes] = set()
        if isinstance(allow, str):
            raise ConfigError("network.allow", f"{allow!r} is one text", "give a list of them")
        for text in allow or ():
            self._add(text)

    def _add(self, text: str) -> None:
        try:
            self._networks.append(ip_network(text))
        except ValueError as exc:
            if "/" in text or ":" in text or text.replace(".", "").isdigit():
                hint = "like 10.1.0.0/16, with no bits behind its mask, 2001:db8::/32, or 192.0.2.1"
                raise ConfigError("network.allow", f"{text!r} is no network: {exc}", hint) from exc
        else:
            return
        name = _ascii(text)
        if not _NAME.fullmatch(name) or len(name) > _LONGEST:
            raise ConfigError(
                "network.allow", f"{text!r} is no name", 'like "debian.org", or "*.debian.org" for all below it'
            )
        if name.startswith(b"*."):
            self._parents.add(name[2:])
        else:
            self._names.add(name)

    def permits(self, packed: bytes) -> bool:
        """Whether an address is in one of the networks."""
        address = ip_address(packed)
        if any(address in network for network in _NEVER):
            return False
        if any(each in network for each in map(ip_address, spellings(packed)[1:]) for network in (*_NEVER, *_BY_NAME)):
            return False
        meant = next((network for network in _BY_NAME if address in network), None)
        return any(address in network and (meant is None or _within(network, meant)) for network in self._networks)

    def permits_name(self, name: bytes) -> bool:
        """Whether a name, in lower case and without a dot at its end, may be asked for."""
        if self._all_names or name in self._names:
            return True
        labels = name.split(b".")
        return any(b".".join(labels[n:]) in self._parents for n in range(1, len(labels)))

    @staticmethod
    def learns(packed: bytes) -> bool:
        """Whether an address may be reached for being that of an allowed name."""
        address = ip_address(packed)
        return address.is_global and not any(address in network for network in (*_NEVER, *_BY_NAME, *_TRANSLATED))


def spellings(packed: bytes) -> list[bytes]:
    """An address, and the one of IPv4 that a translator or a tunnel on the way takes it to, if there is one."""
    address = ip_address(packed)
    return [packed, *(packed[at : at + 4] for network, at in _CARRIED if address in network)]


def _within(network: Network, other: Network) -> bool:
    return network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]


def _ascii(text: str) -> bytes:
    """As it is asked for: international names in their ASCII form."""
    star, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    try:
        return (
            (star + name.rstrip(".").lower()).encode()
            if text.isascii()
            else star.encode() + name.encode("idna").lower()
        )
    except UnicodeError as exc:
        raise ConfigError("network.allow", f"{text!r} is no name", 'like "debian.org"') from exc
