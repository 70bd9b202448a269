"""A TAP interface as back end: by name, made anew, or by open descriptors."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiovmm.config.net import check_interface_name
from aiovmm.devices.virtio.net import tun
from aiovmm.devices.virtio.net.backend import NetBackend
from aiovmm.devices.virtio.net.features import tun_offloads
from aiovmm.devices.virtio.net.interface import Interface, is_there
from aiovmm.devices.virtio.net.port import Port, PortKind
from aiovmm.errors import ConfigError, HostError
from aiovmm.runtime.forks import keep_private, let_go
from aiovmm.runtime.tasks import in_thread
from aiovmm.runtime.turns import next_turn

if TYPE_CHECKING:
    from ipaddress import IPv4Interface, IPv6Interface

__all__ = ["HostAddress", "TapBackend"]

_NEW_NAME = "aiovmm%d"  # the kernel puts in the first number that is free
_USO_PROBE = 0x01 | 0x20 | 0x40  # TUN_F_CSUM, TUN_F_USO4, TUN_F_USO6


@dataclass(frozen=True)
class HostAddress:
    """The host's side of the link: IPv4 or IPv6 address with its netmask (or the length of that), MAC address, or the one that it
    has if it is made here. None: as it is."""

    ip: str | None = None
    mask: str | None = None
    mac: bytes | None = None
    made_mac: bytes | None = None

    @property
    def interface(self) -> IPv4Interface | IPv6Interface | None:
        """Both as one. Raises ConfigError."""
        if self.ip is None:
            return None
        from aiovmm.config.address import host_interface

        if self.mask is None:
            raise ConfigError("net.mask", "is missing: ip is given", "like 255.255.255.0, or 24")
        return host_interface(self.ip, self.mask)


_AS_IT_IS = HostAddress()


def _namespace() -> tuple[int, int] | None:
    """The network namespace of this thread; None if it cannot be told."""
    try:
        status = os.stat("/proc/thread-self/ns/net")
    except OSError:
        return None
    return status.st_dev, status.st_ino


class TapBackend(NetBackend):
    """A TAP with a queue for each pair.

    `name`: attach to it, or make it; None makes one called aiovmm0, aiovmm1, ... What is made goes when it is closed.
    `fds`: queues of a TAP that are open already; they are duplicated, and the interface itself is left as it is.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        fds: Sequence[int] = (),
        pairs: int = 1,
        mtu: int | None = None,
        host: HostAddress = _AS_IT_IS,
    ) -> None:
        if fds and (name or host != _AS_IT_IS):
            raise ConfigError("net.fd", "goes with neither a name nor an address", "configure the TAP that it is of")
        if name:
            check_interface_name(name)
        self.name = name or ""
        self.pairs = len(fds) or pairs
        self.vnet_hdr = True
        self.mtu = mtu
        self._host = host
        self._given = tuple(fds)
        self._fds: list[int] = []
        self._ports: list[Port] = []
        self._active = 0
        self._is_made = False

    def __repr__(self) -> str:
        return f"<TapBackend {self.name or 'to be made'}, {self.pairs} pairs>"

    @property
    def ports(self) -> Sequence[Port]:
        """One for each pair."""
        return self._ports

    async def open(self) -> None:
        """Attach all queues, configure the interface and bring it up. Raises HostError, ConfigError."""
        if self._fds:
            return
        try:
            # Whoever changes interfaces waits for all others who do: tens of milliseconds, while one of them is removed.
            here = _namespace()
            name = f"{self.name or 'new'}: tap open"
            if not await in_thread(name, self._acquire_in, here):
                self._acquire()
        except BaseException:
            await self.close()
            raise
        kind = PortKind.VNET if self.vnet_hdr else PortKind.PLAIN
        self._ports = [Port(fd, kind) for fd in self._fds]

    def _acquire_in(self, namespace: tuple[int, int] | None) -> bool:
        """In a thread: whether that was in this network namespace, which is a thread's, and all is done."""
        if namespace is None or namespace != _namespace():
            return False
        self._acquire()
        return True

    def _acquire(self) -> None:
        if self._given:
            self._adopt()
        else:
            self._attach()
            self._configure()

    def _attach(self) -> None:
        name = self.name or _NEW_NAME
        self._is_made = not self.name or not is_there(self.name)
        multi = self.pairs > 1
        for _ in range(self.pairs):
            self._fds.append(keep_private(tun.open_tun()))
            try:
                name = tun.attach(self._fds[-1], name, multi_queue=multi)
            except HostError as exc:
                if multi or exc.errno != errno.EINVAL:
                    raise
                name = tun.attach(self._fds[-1], name, multi_queue=True)  # one that was made for several queues
                multi = True
        self.name = name
        self._active = self.pairs
        self._prepare()

    def _adopt(self) -> None:
        for fd in self._given:
            name, flags = tun.describe(fd)
            if self._fds and name != self.name:
                hint = "each card has a TAP of its own: give them in options of their own"
                raise ConfigError("net.fd", f"has queues of two TAPs, {self.name} and {name}", hint)
            self.name = name
            self.vnet_hdr = self.vnet_hdr and bool(flags & tun.IFF_VNET_HDR)
            self._fds.append(keep_private(os.dup(fd)))
            os.set_blocking(self._fds[-1], False)
        self._active = self.pairs
        if self.vnet_hdr:
            self._prepare()

    def _prepare(self) -> None:
        for fd in self._fds:
            tun.size_header(fd)
        try:
            tun.set_offload(self._fds[0], _USO_PROBE)
            self.uso = True
        except OSError:  # Linux before 6.2
            self.uso = False
        tun.set_offload(self._fds[0], 0)

    def _configure(self) -> None:
        host = self._host
        with Interface(self.name) as interface:
            if self.mtu is not None:
                interface.set_mtu(self.mtu)
            self.mtu = interface.mtu
            if (mac := host.mac or (host.made_mac if self._is_made else None)) is not None:
                interface.set_mac(mac)
            if (address := host.interface) is not None:
                interface.set_address(address)
            interface.up()

    async def close(self) -> None:
        """Let go of it; a TAP that was made here disappears. Idempotent."""
        fds, self._fds, self._ports = self._fds, [], []
        if fds:  # the kernel may take tens of milliseconds to remove an interface
            await in_thread(f"{self.name}: tap close", _close_all, fds)

    def set_offloads(self, features: int) -> None:
        """Tell the kernel what it may leave to the guest."""
        if self.vnet_hdr:
            tun.set_offload(self._fds[0], tun_offloads(features if self.uso else features & (1 << 32) - 1))

    async def activate(self, pairs: int) -> None:
        """Detach and attach queues; for one the host's kernel takes some tenths of a millisecond."""
        while self._active > pairs:
            tun.set_queue(self._fds[self._active - 1], attached=False)
            self._active -= 1
            await next_turn()
        while self._active < pairs:
            tun.set_queue(self._fds[self._active], attached=True)
            self._active += 1
            await next_turn()

    def set_carrier(self, up: bool) -> None:
        """The host sees the cable plugged or pulled."""
        with contextlib.suppress(OSError):  # macvtap knows no such thing, and a TAP that is gone has none
            tun.set_carrier(self._fds[0], up)


def _close_all(fds: Sequence[int]) -> None:
    for fd in reversed(fds):
        os.close(let_go(fd))
