"""Disks."""

from __future__ import annotations

import enum
from pathlib import Path

from aiovmm.config.checks import check_path, check_queues, check_socket, encoded
from aiovmm.config.kinds import dataclass
from aiovmm.config.rates import RATES, LimitedConfig
from aiovmm.errors import ConfigError

__all__ = ["SERIAL_SIZE", "DiskConfig", "ImageType", "LockGranularity"]

SERIAL_SIZE = 20  # VIRTIO 1.2, 5.2.6: what GET_ID answers
_OURS_ALONE = (
    "direct",
    "serial",
    "image_type",
    "overlay",
    "backing_files",
    "sparse",
    "lock_granularity",
    "io_uring",
    "rate_limit_group",
    "queue_affinity",
    *RATES,
)


class ImageType(enum.Enum):
    """What is in an image. It decides on how it is read, and says that the user knows. All but RAW are QEMU's affair."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VHD = "vhd"
    VHDX = "vhdx"


_NOT_OF_QEMU = ("serial", "overlay", "rate_limit_group", "queue_affinity", *RATES)


class LockGranularity(enum.Enum):
    """What of an image's file is locked: the bytes that it has when it is opened, or all that it may ever have."""

    BYTE_RANGE = "byte-range"
    FULL = "full"


@dataclass(frozen=True, kw_only=True)
class DiskConfig(LimitedConfig):
    """virtio-blk from a raw image or block device at `path`, or from a vhost-user back end at `socket`.

    `image_type`: None finds out. QCOW2, VHD and VHDX are read and written by QEMU's storage daemon. One that is raw, and of which
    nobody says so, the guest cannot make look like something else; see docs/disks.md. `overlay`: the file that takes what the
    guest writes, made if it is not there; the image is only read. `backing_files`: the bases that an image which is not raw names
    are opened, too. `serial`: up to 20 bytes; None derives one from the file's numbers. `sparse`: space that the guest trims is
    given back. `io_uring`: False has threads do the I/O. `bw_*`, `ops_*`: a limit as RateLimit has it; `rate_limit_group`: one
    that it shares. `queue_affinity`: on which processors of the host the transfers of a queue are made, by threads then; the
    event loop looks into the queues as ever, and of one that is not there it is only remarked.
    """

    path: Path | None = None
    readonly: bool = False
    direct: bool = False
    num_queues: int = 1
    queue_size: int = 128
    serial: str | None = None
    image_type: ImageType | None = None
    overlay: Path | None = None
    backing_files: bool = False
    sparse: bool = True
    lock_granularity: LockGranularity = LockGranularity.FULL
    io_uring: bool = True
    rate_limit_group: str | None = None
    queue_affinity: tuple[tuple[int, tuple[int, ...]], ...] = ()
    vhost_user: bool = False
    socket: Path | None = None

    def __post_init__(self) -> None:
        self._check_place("disk")
        self._check_rates("disk")
        if self.rate_limit_group is not None and self.rate_limit is not None:
            raise ConfigError(
                "disk.rate_limit_group", "goes with no limit of the disk's own", "the group has the limit"
            )
        check_queues("disk", self.num_queues, self.queue_size)
        if self.vhost_user:
            self._check_back_end()
        elif self.path is None:
            raise ConfigError("disk.path", "is missing", "say path=IMAGE")
        elif self.socket is not None:
            raise ConfigError("disk.socket", "is for vhost_user=on only")
        else:
            check_path("disk.path", self.path)
        if self.overlay is not None:
            check_path("disk.overlay", self.overlay)
            if self.overlay == self.path:
                raise ConfigError("disk.overlay", "is the image that it is to be over", "give it a file of its own")
        if self.image_type not in (None, ImageType.RAW):
            self.check_for_qemu(self.image_type)
        if self.queue_affinity:
            self._check_affinity()
        if self.serial is not None:
            encoded("disk.serial", self.serial, SERIAL_SIZE)

    def _check_affinity(self) -> None:
        queues = [queue for queue, _ in self.queue_affinity]
        for queue, hosts in self.queue_affinity:
            if queue < 0 or min(hosts, default=0) < 0:
                raise ConfigError("disk.queue_affinity", "has a negative number", "the first of all is 0")
            if queues.count(queue) > 1:
                raise ConfigError("disk.queue_affinity", f"names queue {queue} twice")
            if not hosts:
                raise ConfigError("disk.queue_affinity", f"leaves no processor of the host for queue {queue}")

    def check_for_qemu(self, kind: ImageType) -> None:
        """Raises ConfigError for what an image of this kind cannot have."""
        for key in _NOT_OF_QEMU:
            if getattr(self, key) != getattr(DiskConfig, key):
                hint = "an overlay of it is made by `qemu-img create -b`" if key == "overlay" else "raw images have it"
                reason = f"does not go with a {kind.value} image, which QEMU's storage daemon serves"
                raise ConfigError(f"disk.{key}", reason, hint)

    def _check_back_end(self) -> None:
        if self.socket is None or self.path is not None:
            raise ConfigError("disk.socket", "vhost_user=on takes socket=PATH and no path")
        check_socket("disk.socket", self.socket)
        for key in _OURS_ALONE:
            if getattr(self, key) != getattr(DiskConfig, key):
                raise ConfigError(f"disk.{key}", "does not go with vhost_user=on", "the image is the back end's affair")
