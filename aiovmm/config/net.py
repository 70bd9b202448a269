"""Network cards."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from pathlib import Path

from aiovmm.config.checks import check_descriptor, check_queues, check_socket, encoded
from aiovmm.config.kinds import dataclass
from aiovmm.config.rates import LimitedConfig
from aiovmm.errors import ConfigError

__all__ = ["NetConfig", "VhostMode", "check_guest_addresses", "check_interface_name", "is_no_station"]

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)
_TAP_MTU = 65521  # a frame, with its Ethernet header, has at most 65535 bytes
_MOST_ADDRESSES = 64
_NOT_IN_NAMES = re.compile(rb"[/:%\s]")


class VhostMode(enum.Enum):
    """What this end of a vhost-user socket is: it connects to the back end, or the back end to it."""

    CLIENT = "client"
    SERVER = "server"


def check_interface_name(name: str) -> None:
    """As the kernel's dev_valid_name does; and no %, which it would take for a number of its choice. Raises ConfigError."""
    if _NOT_IN_NAMES.search(encoded("net.tap", name, 15)) or name in (".", ".."):
        raise ConfigError("net.tap", f"{name!r} is not a name for an interface", "no spaces, and none of / : %")


def check_guest_addresses(addresses: Sequence[str]) -> None:
    """Those that a guest may send from, or networks. Raises ConfigError."""
    from ipaddress import ip_network

    if len(addresses) > _MOST_ADDRESSES:
        raise ConfigError("net.guest_ip", f"has more than {_MOST_ADDRESSES} addresses", "name networks, like fd00::/64")
    for address in addresses:
        try:
            ip_network(address)
        except ValueError as exc:
            raise ConfigError("net.guest_ip", f"{exc}", "like guest_ip=[10.0.0.2,fd00::/64]") from None


def _check_mac(option: str, mac: str) -> None:
    if not _MAC.fullmatch(mac):
        raise ConfigError(option, f"{mac!r} is not a MAC address", "like 2e:00:00:00:00:01")


def is_no_station(mac: str) -> bool:
    """Whether it is no card's own: a group's, or nobody's. The kernel gives no interface such an address."""
    return bool(int(mac[:2], 16) & 1) or not mac.strip("0:")


@dataclass(frozen=True, kw_only=True)
class NetConfig(LimitedConfig):
    """virtio-net: on the TAP named `tap` (None or empty: one is made and removed), on open `fd`s (of a TAP, or one socket),
    through a `passt` process, which needs no privilege, or a vhost-user `socket`, where the back end listens, or, with
    `vhost_mode` SERVER, is waited for until it connects.

    `num_queues` counts both directions, as in the reference monitor: 2 is one pair. `ip`, `mask` and `host_mac` are the host
    side's. `mac` is shown to the guest as it is; of one that no driver takes it is remarked.
    The offloads say what guest and host may leave to each other: checksums, TCP and UDP segmentation. `bw_*`, `ops_*`: a
    limit, as RateLimit has it, for what the guest receives, and the same for what it sends.
    """

    tap: str | None = None
    fd: tuple[int, ...] = ()
    ip: str | None = None
    mask: str | None = None
    mac: str | None = None
    host_mac: str | None = None
    anti_spoof: bool = False
    guest_ip: tuple[str, ...] = ()
    mtu: int | None = None
    offload_csum: bool = True
    offload_tso: bool = True
    offload_ufo: bool = True
    num_queues: int = 2
    queue_size: int = 256
    passt: bool = False
    vhost_user: bool = False
    socket: Path | None = None
    vhost_mode: VhostMode = VhostMode.CLIENT

    def __post_init__(self) -> None:
        self._check_place("net")
        self._check_rates("net")
        check_queues("net", self.num_queues, self.queue_size, least=2)
        if self.vhost_user != (self.socket is not None):
            raise ConfigError("net.socket", "vhost_user=on and socket=PATH go together")
        if self.socket is not None:
            check_socket("net.socket", self.socket)
        elif self.vhost_mode is VhostMode.SERVER:
            raise ConfigError(
                "net.vhost_mode", "is server, and no back end is to come", "say vhost_user=on,socket=PATH"
            )
        if self.tap:
            check_interface_name(self.tap)
        most = 65535 if self.vhost_user or self.fd or self.passt else _TAP_MTU
        if self.mtu is not None and not 68 <= self.mtu <= most:
            raise ConfigError("net.mtu", f"{self.mtu} is not in 68..{most}")
        for key, mac in (("mac", self.mac), ("host_mac", self.host_mac)):
            if mac is not None:
                _check_mac(f"net.{key}", mac)
        if self.host_mac is not None and is_no_station(self.host_mac):
            hint = "the second digit of a card's own address is even"
            raise ConfigError("net.host_mac", f"{self.host_mac!r} is a multicast address, or none", hint)
        self._check_descriptors()
        self._check_back_end()
        self._check_address()
        if self.guest_ip:
            self._check_guest_ip()

    def _check_guest_ip(self) -> None:
        if not self.anti_spoof:
            raise ConfigError(
                "net.guest_ip", "says what the guest may send from, and nobody looks", "say anti_spoof=on"
            )
        check_guest_addresses(self.guest_ip)

    def _check_descriptors(self) -> None:
        for fd in self.fd:
            check_descriptor("net.fd", fd)
        if len(set(self.fd)) < len(self.fd):
            raise ConfigError("net.fd", "names a descriptor twice", "each queue pair needs one of its own")
        if self.fd and len(self.fd) * 2 != self.num_queues:
            raise ConfigError("net.fd", f"{len(self.fd)} fds need num_queues={len(self.fd) * 2}, not {self.num_queues}")

    def _check_back_end(self) -> None:
        """Each has its own half of the keys."""
        if self.fd and (self.tap or self.ip or self.host_mac):
            hint = "configure the interface that it is of"
            raise ConfigError("net.fd", "goes with none of tap, ip, mask, host_mac", hint)
        if self.passt and (self.tap or self.fd or self.ip or self.host_mac or self.num_queues != 2):
            raise ConfigError(
                "net.passt", "has no interface on the host, and one queue pair: no tap, fd, ip or host_mac"
            )
        for key in (
            ("tap", "fd", "ip", "host_mac", "passt", "bw_size", "ops_size", "anti_spoof") if self.vhost_user else ()
        ):
            if getattr(self, key):
                raise ConfigError(f"net.{key}", "does not go with vhost_user=on", "its back end has the host's side")

    def _check_address(self) -> None:
        if self.ip is None and self.mask is None:
            return
        if self.ip is None or self.mask is None:
            missing, there = ("ip", "mask") if self.ip is None else ("mask", "ip")
            raise ConfigError(f"net.{missing}", f"is missing: {there}= is given", "like ip=10.0.0.1,mask=255.255.255.0")
        from aiovmm.config.address import host_interface

        host_interface(self.ip, self.mask)
