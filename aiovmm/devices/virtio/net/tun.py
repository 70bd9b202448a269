"""The ioctls of /dev/net/tun (linux/if_tun.h) and what their errors mean to a user."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from aiovmm.errors import ConfigError, HostError

__all__ = [
    "IFF_MULTI_QUEUE",
    "IFF_VNET_HDR",
    "attach",
    "describe",
    "open_tun",
    "set_carrier",
    "set_offload",
    "set_queue",
    "size_header",
]

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNGETIFF = 0x800454D2
_TUNSETVNETHDRSZ = 0x400454D8
_TUNSETQUEUE = 0x400454D9
_TUNSETCARRIER = 0x400454E2
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE_ATTACH = 0x0200
_IFF_MULTI_QUEUE_DETACH = 0x0400
_IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_MULTI_QUEUE = 0x0100
_IFREQ = struct.Struct("=16sH22x")
_HEADER_SIZE = 12


def open_tun() -> int:
    """A descriptor that is not an interface yet. Raises HostError with a remedy."""
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            hint = "load the module: modprobe tun; in a container, pass the device in"
        else:
            hint = "be root, or give yourself access to it; without privileges use passt or a socket"
        raise HostError("open for a TAP", exc.errno or 0, hint, _DEVICE) from exc


def attach(fd: int, name: str, *, multi_queue: bool) -> str:
    """Make `fd` a queue of the TAP `name`, which comes into being if it does not exist ("%d" becomes a number). The name.
    Raises HostError with a remedy."""
    flags = _IFF_TAP | _IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multi_queue else 0)
    try:
        answer = fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(os.fsencode(name), flags))
    except OSError as exc:
        raise HostError(f"attach to TAP {name!r}", exc.errno or 0, _remedy(exc.errno, name, multi_queue)) from exc
    return os.fsdecode(answer[:16].partition(b"\0")[0])


def _remedy(code: int | None, name: str, multi_queue: bool) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return (
            "it needs CAP_NET_ADMIN, or a TAP that is yours: `ip tuntap add NAME mode tap user $USER` as root; "
            "without privileges use passt or a socket"
        )
    if code == errno.EBUSY:
        return "another program has it open" + ("" if multi_queue else ", and it was made for one queue")
    if code == errno.EINVAL and multi_queue:
        return f"it is no TAP, or was made for one queue: `ip tuntap add {name} mode tap multi_queue`, or num_queues=2"
    if code == errno.EINVAL:
        return "an interface of this name exists and is no TAP"
    return ""


def describe(fd: int) -> tuple[str, int]:
    """Name and flags of the TAP that `fd` is a queue of. Raises ConfigError if it is none."""
    try:
        answer = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size))
    except OSError as exc:
        raise ConfigError("net.fd", f"{fd} is neither an attached TAP nor a socket: {exc.strerror}") from exc
    name, flags = _IFREQ.unpack(answer)
    if not flags & _IFF_TAP or not flags & _IFF_NO_PI:
        raise ConfigError("net.fd", f"{fd} carries no bare Ethernet frames", "open it with IFF_TAP | IFF_NO_PI")
    return os.fsdecode(name.partition(b"\0")[0]), flags


def size_header(fd: int) -> None:
    """Have it carry struct virtio_net_hdr_v1, in little-endian, which is all that machines of ours are."""
    fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("=i", _HEADER_SIZE))


def set_offload(fd: int, flags: int) -> None:
    """TUN_F_ flags: what the reader of the TAP can take. Raises OSError, EINVAL for what the kernel does not know."""
    fcntl.ioctl(fd, _TUNSETOFFLOAD, flags)


def set_queue(fd: int, attached: bool) -> None:
    """Let frames go to this queue, or not. Raises OSError."""
    flag = _IFF_MULTI_QUEUE_ATTACH if attached else _IFF_MULTI_QUEUE_DETACH
    fcntl.ioctl(fd, _TUNSETQUEUE, _IFREQ.pack(b"", flag))


def set_carrier(fd: int, up: bool) -> None:
    """Carrier of the host's interface. Raises OSError where there is no such thing (Linux before 4.20, macvtap)."""
    fcntl.ioctl(fd, _TUNSETCARRIER, struct.pack("=i", up))
