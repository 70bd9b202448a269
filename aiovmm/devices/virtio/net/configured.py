"""From NetConfig to a network device with its back end."""

from __future__ import annotations

import os
import socket
import stat

from aiovmm.config import NetConfig
from aiovmm.devices.virtio.net.backend import NetBackend
from aiovmm.devices.virtio.net.device import NetDevice
from aiovmm.devices.virtio.net.features import Offloads
from aiovmm.devices.virtio.net.mac import other_end, parse_mac, random_mac
from aiovmm.devices.virtio.net.passt import PasstBackend
from aiovmm.devices.virtio.net.sockets import SocketBackend
from aiovmm.devices.virtio.net.tap import HostAddress, TapBackend
from aiovmm.errors import ConfigError

__all__ = ["make_net"]


def make_net(config: NetConfig, name: str = "net") -> NetDevice:
    """The device; nothing is opened yet. Raises ConfigError."""
    mac = parse_mac(config.mac) if config.mac is not None else random_mac()
    offloads = Offloads(config.offload_csum, config.offload_tso, config.offload_ufo)
    return NetDevice(
        _backend(config, mac),
        mac=mac,
        queue_size=config.queue_size,
        offloads=offloads,
        name=name,
        rate_limit=config.rate_limit,
        only_from=config.guest_ip if config.anti_spoof else None,
    )


def _backend(config: NetConfig, mac: bytes) -> NetBackend:
    if config.passt:
        return PasstBackend(mtu=config.mtu)
    if config.fd:
        if len(config.fd) == 1 and _is_socket(config.fd[0]):
            return SocketBackend(socket.socket(fileno=os.dup(config.fd[0])), mtu=config.mtu)
        return TapBackend(fds=config.fd, mtu=config.mtu)
    host_mac = parse_mac(config.host_mac) if config.host_mac is not None else None
    host = HostAddress(config.ip, config.mask, host_mac, other_end(mac))
    return TapBackend(config.tap, pairs=config.num_queues // 2, mtu=config.mtu, host=host)


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError as exc:
        raise ConfigError("net.fd", f"{fd} is not open: {exc.strerror}") from exc
