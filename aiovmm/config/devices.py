"""The other devices on the PCI bus: entropy, sockets, persistent memory, shared directories, devices of the host."""

from __future__ import annotations

import enum
from pathlib import Path

from aiovmm.config.checks import check_descriptor, check_path, check_queues, check_socket, encoded
from aiovmm.config.kinds import dataclass
from aiovmm.config.placed import PlacedConfig
from aiovmm.errors import ConfigError

__all__ = [
    "BalloonConfig",
    "DeviceConfig",
    "FsConfig",
    "GenericVhostUserConfig",
    "PmemConfig",
    "PvpanicConfig",
    "RngConfig",
    "RtcConfig",
    "VsockConfig",
    "WatchdogAction",
    "WatchdogConfig",
]

_PMEM_ALIGN = 2 << 20
_PAGE = 4096
_LAST_BAR = 5


@dataclass(frozen=True, kw_only=True)
class RngConfig(PlacedConfig):
    """virtio-rng from the character device or file `src`."""

    src: Path = Path("/dev/urandom")

    def __post_init__(self) -> None:
        self._check_place("rng")
        check_path("rng.src", self.src)


@dataclass(frozen=True, kw_only=True)
class VsockConfig(PlacedConfig):
    """virtio-vsock with context id `cid`; `socket` is the hybrid unix socket's path (None: only the program's streams).

    `buffer_size`: bytes that the guest may have under way on each connection. `max_connections` bounds descriptors and
    memory. `connect_timeout`: seconds that a client of the socket waits for a guest that cannot answer yet.
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
        if self.socket is not None:
            check_socket("vsock.socket", self.socket, room=17)
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
        check_path("pmem.file", self.file)
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
        check_queues("fs", self.num_queues, self.queue_size, most=255)  # a back end is told 8 bits of a ring's number
        encoded("fs.tag", self.tag, 36)
        check_socket("fs.socket", self.socket)


@dataclass(frozen=True, kw_only=True)
class BalloonConfig(PlacedConfig):
    """virtio-balloon: the guest does without `size` bytes of its memory, at most; more or less while it runs, by
    `vm.balloon.resize`. `deflate_on_oom`: it may take some back when it has no other. `free_page_reporting`: it gives back
    what it does not use, unasked. With `iommu` the guest is told that it is behind the IOMMU; pages are named, and its rings
    are found, by physical addresses all the same, since that is what it is to give back."""

    size: int = 0
    deflate_on_oom: bool = False
    free_page_reporting: bool = False

    def __post_init__(self) -> None:
        self._check_place("balloon")
        if self.size < 0 or self.size % _PAGE:
            raise ConfigError("balloon.size", f"{self.size} is not a multiple of {_PAGE}")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(PlacedConfig):
    """A host PCI device handed to the guest (VFIO); `path` is its sysfs directory. `fd` instead is a descriptor of its own file
    (/dev/vfio/devices/vfioN), which goes with PlatformConfig.iommufd; the VM uses a copy of it, and a device is bound once in
    the life of such a file. Of BARs in `x_exclude_mmap_bars` the guest has no page mapped: each access comes here, and is made
    for it."""

    path: Path | None = None
    fd: int | None = None
    x_exclude_mmap_bars: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._check_place("device")
        if self.path is not None:
            check_path("device.path", self.path)
        if (self.path is None) == (self.fd is None):
            raise ConfigError(
                "device.path", "is missing" if self.fd is None else "is given, and fd, too", "give one of them"
            )
        if self.fd is not None:
            check_descriptor("device.fd", self.fd)
        for bar in self.x_exclude_mmap_bars:
            if not 0 <= bar <= _LAST_BAR:
                raise ConfigError("device.x_exclude_mmap_bars", f"there is no BAR {bar}", f"0 to {_LAST_BAR}")


class WatchdogAction(enum.Enum):
    """What becomes of a guest that has stopped to ping its watchdog: a RESET, after which `VMConfig.on_reboot` holds, or
    nothing but the EVENT that there is in either case."""

    RESET = "reset"
    EVENT = "event"


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig(PlacedConfig):
    """virtio-watchdog: what to do when a driver that has begun to ping it does not for 20 seconds."""

    action: WatchdogAction = WatchdogAction.RESET

    def __post_init__(self) -> None:
        self._check_place("watchdog")

    @property
    def resets(self) -> bool:
        """Whether the guest is to be reset."""
        return self.action is WatchdogAction.RESET


@dataclass(frozen=True, kw_only=True)
class PvpanicConfig(PlacedConfig):
    """pvpanic on PCI: the guest's kernel says itself that it has panicked, and what its console says is not looked at for
    that."""

    def __post_init__(self) -> None:
        self._check_place("pvpanic")
        if self.iommu:
            raise ConfigError("pvpanic.iommu", "cannot be on", "it reaches no memory")


@dataclass(frozen=True, kw_only=True)
class RtcConfig(PlacedConfig):
    """virtio-rtc: the host's time of day, for guests whose kernel has a driver for it (Linux from 6.16 on)."""

    def __post_init__(self) -> None:
        self._check_place("rtc")


@dataclass(frozen=True, kw_only=True)
class GenericVhostUserConfig(PlacedConfig):
    """A virtio device of the kind `device_type` (VIRTIO 1.2, 5), served by a vhost-user back end at `socket`;
    `queue_sizes` has the size of each queue."""

    device_type: int
    socket: Path
    queue_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        self._check_place("generic_vhost_user")
        if not 1 <= self.device_type <= _LAST_KIND:
            raise ConfigError("generic_vhost_user.device_type", f"{self.device_type} is not in 1..{_LAST_KIND}")
        if why := _SERVED_HERE.get(self.device_type):
            raise ConfigError(
                "generic_vhost_user.device_type", f"{self.device_type} cannot be another process's: {why}"
            )
        check_queues("generic_vhost_user", len(self.queue_sizes), 2)
        for size in self.queue_sizes:
            check_queues("generic_vhost_user", 1, size)
        check_socket("generic_vhost_user.socket", self.socket)
        if self.iommu:
            raise ConfigError("generic_vhost_user.iommu", "cannot be on", "a back end reaches memory by itself")


_LAST_KIND = 63  # PCI device IDs 0x1041 to 0x107f are virtio's
_SERVED_HERE = {
    23: "an IOMMU translates for the devices that are served here",
    35: "a back end has no way to reset the guest",
}
