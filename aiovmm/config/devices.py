"""The devices on the PCI bus. Every one has an optional `id`, a `pci_segment`, and may be put behind the IOMMU."""

from __future__ import annotations

import re
from pathlib import Path

from aiovmm.dataclass import dataclass
from aiovmm.errors import ConfigError

__all__ = [
    "DeviceConfig",
    "DiskConfig",
    "FsConfig",
    "NetConfig",
    "PlacedConfig",
    "PmemConfig",
    "RngConfig",
    "VsockConfig",
]

MAX_QUEUE_SIZE = 32768  # VIRTIO 1.2, 2.7: the largest split ring
_ID = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
_MAC = r"[0-9a-f]{2}(:[0-9a-f]{2}){5}"
_PMEM_ALIGN = 2 << 20


@dataclass(frozen=True, kw_only=True)
class PlacedConfig:
    """Where a device sits: `id` names it (None: a name is made), `pci_segment` is its PCI domain."""

    id: str | None = None
    pci_segment: int = 0
    iommu: bool = False

    def _check_place(self, option: str) -> None:
        if self.id is not None and not re.fullmatch(_ID, self.id):
            raise ConfigError(f"{option}.id", f"{self.id!r} is not a name", "use up to 64 letters, digits, _ . and -")
        if self.pci_segment < 0:
            raise ConfigError(f"{option}.pci_segment", f"{self.pci_segment} is negative")


def _check_queues(option: str, num_queues: int, queue_size: int, *, least: int = 1, most: int = 256) -> None:
    if not least <= num_queues <= most:
        raise ConfigError(f"{option}.num_queues", f"{num_queues} is not in {least}..{most}")
    if not 2 <= queue_size <= MAX_QUEUE_SIZE or queue_size & (queue_size - 1):
        raise ConfigError(f"{option}.queue_size", f"{queue_size} is not a power of two in 2..{MAX_QUEUE_SIZE}")


@dataclass(frozen=True, kw_only=True)
class RngConfig(PlacedConfig):
    """virtio-rng from the character device or file `src`."""

    src: Path = Path("/dev/urandom")

    def __post_init__(self) -> None:
        self._check_place("rng")


@dataclass(frozen=True, kw_only=True)
class DiskConfig(PlacedConfig):
    """virtio-blk from a raw image or block device at `path`, or from a vhost-user back end at `socket`."""

    path: Path | None = None
    readonly: bool = False
    direct: bool = False
    num_queues: int = 1
    queue_size: int = 128
    serial: str | None = None
    vhost_user: bool = False
    socket: Path | None = None

    def __post_init__(self) -> None:
        self._check_place("disk")
        _check_queues("disk", self.num_queues, self.queue_size)
        if self.vhost_user:
            if self.socket is None or self.path is not None:
                raise ConfigError("disk.socket", "vhost_user=on takes socket=PATH and no path")
        elif self.path is None:
            raise ConfigError("disk.path", "is missing", "say path=IMAGE")
        elif self.socket is not None:
            raise ConfigError("disk.socket", "is for vhost_user=on only")
        if self.serial is not None and not 0 < len(self.serial.encode()) <= 20:
            raise ConfigError("disk.serial", f"{self.serial!r} is not 1..20 bytes long")


@dataclass(frozen=True, kw_only=True)
class NetConfig(PlacedConfig):
    """virtio-net: on the TAP named `tap` (None or empty: one is made and removed), on open `fd`s (of a TAP, or one socket),
    through a `passt` process, which needs no privilege, or a vhost-user `socket`.

    `num_queues` counts both directions, as in the reference monitor: 2 is one pair. `ip`, `mask` and `host_mac` are the host
    side's. The offloads say what guest and host may leave to each other: checksums, TCP and UDP segmentation.
    """

    tap: str | None = None
    fd: tuple[int, ...] = ()
    ip: str | None = None
    mask: str | None = None
    mac: str | None = None
    host_mac: str | None = None
    mtu: int | None = None
    offload_csum: bool = True
    offload_tso: bool = True
    offload_ufo: bool = True
    num_queues: int = 2
    queue_size: int = 256
    passt: bool = False
    vhost_user: bool = False
    socket: Path | None = None

    def __post_init__(self) -> None:
        self._check_place("net")
        _check_queues("net", self.num_queues, self.queue_size, least=2)
        if self.num_queues % 2:
            raise ConfigError("net.num_queues", f"{self.num_queues} is odd", "it counts both directions: 2 is one pair")
        if self.vhost_user != (self.socket is not None):
            raise ConfigError("net.socket", "vhost_user=on and socket=PATH go together")
        if self.tap is not None and len(self.tap.encode()) > 15:
            raise ConfigError("net.tap", f"{self.tap!r} is longer than an interface name can be (15 bytes)")
        if self.fd and len(self.fd) * 2 != self.num_queues:
            raise ConfigError("net.fd", f"{len(self.fd)} fds need num_queues={len(self.fd) * 2}, not {self.num_queues}")
        for key, mac in (("mac", self.mac), ("host_mac", self.host_mac)):
            if mac is not None and not re.fullmatch(_MAC, mac.lower()):
                raise ConfigError(f"net.{key}", f"{mac!r} is not a MAC address", "like 2e:00:00:00:00:01")
            if mac is not None and int(mac[:2], 16) & 1:
                raise ConfigError(f"net.{key}", f"{mac!r} is a multicast address")
        if self.mtu is not None and not 68 <= self.mtu <= 65535:
            raise ConfigError("net.mtu", f"{self.mtu} is not in 68..65535")
        if self.fd and (self.tap or self.ip or self.host_mac):
            raise ConfigError(
                "net.fd", "goes with none of tap, ip, mask, host_mac", "configure the interface that it is of"
            )
        if self.passt and (self.tap or self.fd or self.ip or self.host_mac or self.num_queues != 2):
            raise ConfigError(
                "net.passt", "has no interface on the host, and one queue pair: no tap, fd, ip or host_mac"
            )
        self._check_vhost_user()
        self._check_address()

    def _check_vhost_user(self) -> None:
        for key in ("tap", "fd", "ip", "host_mac", "passt") if self.vhost_user else ():
            if getattr(self, key):
                raise ConfigError(f"net.{key}", "does not go with vhost_user=on", "its back end has the host's side")

    def _check_address(self) -> None:
        if self.mask is not None and self.ip is None:
            raise ConfigError("net.mask", "goes with ip=")
        if self.ip is not None:
            import ipaddress  # 4 ms of a start, for the few that give an address

            try:
                ipaddress.ip_interface(f"{self.ip}/{self.mask or '255.255.255.0'}")
            except ValueError as exc:
                raise ConfigError("net.ip", str(exc)) from exc


@dataclass(frozen=True, kw_only=True)
class VsockConfig(PlacedConfig):
    """virtio-vsock with context id `cid`; `socket` is the hybrid unix socket's path (None: only the program's streams).

    `buffer_size`: bytes that the guest may have under way on each connection. `max_connections` bounds descriptors and memory.
    `connect_timeout`: seconds that a client of the socket waits for a guest that cannot answer yet.
    """

    cid: int = 3
    socket: Path | None = None
    buffer_size: int = 64 << 10
    max_connections: int = 1024
    connect_timeout: float = 5.0

    def __post_init__(self) -> None:
        self._check_place("vsock")
        if not 3 <= self.cid <= 0xFFFF_FFFE:
            raise ConfigError("vsock.cid", f"{self.cid} is not in 3..0xfffffffe", "0 to 2 are reserved")
        if self.socket is not None and len(str(self.socket).encode()) > 90:
            raise ConfigError("vsock.socket", "the path is too long for a unix socket with a port after it (90 bytes)")
        if not 4096 <= self.buffer_size <= 1 << 30:
            raise ConfigError("vsock.buffer_size", f"{self.buffer_size} is not in 4K..1G")
        if self.max_connections < 1:
            raise ConfigError("vsock.max_connections", f"{self.max_connections} is not 1 or more")
        if not 0 < self.connect_timeout < float("inf"):
            raise ConfigError("vsock.connect_timeout", f"{self.connect_timeout} is not a number of seconds")


@dataclass(frozen=True, kw_only=True)
class PmemConfig(PlacedConfig):
    """virtio-pmem from `file`; `size` in bytes (None: the file's own); `discard_writes` maps it privately."""

    file: Path
    size: int | None = None
    discard_writes: bool = False

    def __post_init__(self) -> None:
        self._check_place("pmem")
        if self.size is not None and (self.size <= 0 or self.size % _PMEM_ALIGN):
            raise ConfigError("pmem.size", f"{self.size} is not a multiple of 2M")


@dataclass(frozen=True, kw_only=True)
class FsConfig(PlacedConfig):
    """virtio-fs: the share named `tag`, served by a vhost-user back end at `socket`."""

    tag: str
    socket: Path
    num_queues: int = 1
    queue_size: int = 1024

    def __post_init__(self) -> None:
        self._check_place("fs")
        _check_queues("fs", self.num_queues, self.queue_size)
        if not 0 < len(self.tag.encode()) <= 36:
            raise ConfigError("fs.tag", f"{self.tag!r} is not 1..36 bytes long")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(PlacedConfig):
    """A host PCI device handed to the guest (VFIO); `path` is its sysfs directory."""

    path: Path

    def __post_init__(self) -> None:
        self._check_place("device")
