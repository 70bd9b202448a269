"""A raw image file or block device as the back end of a disk: what it is, what it can do, and the rare operations on it.

Everything here may block and is called before the guest runs, or in a thread. Reads and writes are native code's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aiovmm.config.disk import SERIAL_SIZE, LockGranularity
from aiovmm.devices.virtio.blk import probe
from aiovmm.devices.virtio.blk.lock import lock_image
from aiovmm.devices.virtio.blk.protocol import SECTOR
from aiovmm.devices.virtio.formats import OVERLAY, format_of_open_file, open_file, open_image
from aiovmm.errors import HostError, ImageError, UsageError
from aiovmm.native import lib
from aiovmm.runtime import ofdlock
from aiovmm.runtime.forks import keep_private, let_go

if TYPE_CHECKING:
    from aiovmm.devices.virtio.blk.extents import Extent
    from aiovmm.devices.virtio.blk.overlay.base import Base
    from aiovmm.devices.virtio.blk.overlay.layer import Layer

__all__ = ["DiskImage", "let_go_of"]

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # <linux/falloc.h>
_BLKDISCARD, _BLKZEROOUT = 0x1277, 0x127F  # <linux/fs.h>
_ZEROS = bytes(1 << 20)


class DiskImage:
    """An open, locked image. `fd` is open with O_DIRECT if `direct`.

    `align` is (file offsets and lengths, memory addresses) as O_DIRECT wants them, in bytes; (0, 0) if not `direct`.
    `guarded`: nobody said that it is `raw`, so the guest may not write what would make it look like something else.
    `may_wait`: to begin a transfer may take as long as the transfer, or for ever (probe.may_wait).
    `top_layer`, `base`: of an overlay (see `overlay`), else None.
    """

    top_layer: Layer | None = None
    base: Base | None = None

    def __init__(
        self, path: Path, fd: int, *, readonly: bool, direct: bool, raw: bool = False, sparse: bool = True
    ) -> None:
        self.path = path
        self.fd = fd
        self.readonly = readonly
        self.direct = direct
        self.is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.may_wait = not self.is_device and probe.may_wait(fd)
        self.size = probe.size_of(fd)
        self.align = probe.direct_alignment(fd, is_device=self.is_device) if direct else (0, 0)
        logical = max(self.align[0], SECTOR)
        self.geometry = probe.device_geometry(fd) if self.is_device else probe.file_geometry(fd, logical)
        self.can_discard = sparse and not readonly and self.try_discard()
        self.sparse = sparse
        self.marks_matter = not raw
        self.guarded = not raw and not readonly

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        readonly: bool = False,
        direct: bool = False,
        raw: bool = False,
        sparse: bool = True,
        lock: LockGranularity = LockGranularity.FULL,
    ) -> DiskImage:
        """Open and lock an image; shared if `readonly`, else exclusively. `raw`: it is raw, whatever it looks like; not `sparse`:
        it never gives space back. Raises ImageError for what is no raw file or block device, HostError for what the host refuses.
        """
        path = Path(path)
        name = str(path)
        flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC
        try:
            fd = open_image(path, flags | (os.O_DIRECT if direct else 0))
        except OSError as exc:
            raise HostError("opening the disk image", exc.errno or 0, _open_hint(exc.errno, direct), name) from exc
        try:
            keep_private(fd)
            lock_image(fd, name, shared=readonly, size=probe.size_of(fd) if lock is LockGranularity.BYTE_RANGE else 0)
            if not raw:
                _refuse_other_formats(path, fd)
            image = cls(path, fd, readonly=readonly, direct=direct, raw=raw, sparse=sparse)
            if image.size % image.geometry.logical and direct:
                from aiovmm.runtime.log import Log

                unit = image.geometry.logical
                there = f"O_DIRECT takes whole blocks of {unit}: the guest has {image.sectors * SECTOR} of the bytes"
                remedy = f"`truncate -s %{unit} FILE` rounds it up; or leave direct off"
                Log().warning(f"{name}: has {image.size} bytes, and {there} ({remedy})")
        except (HostError, ImageError):
            let_go_of(fd)
            raise
        except OSError as exc:
            let_go_of(fd)
            raise HostError("examining the disk image", exc.errno or 0, "", name) from exc
        return image

    @property
    def serial(self) -> str:
        """The serial number of a disk that has none of its own; the same each time, and the reference monitor's."""
        file = os.fstat(self.fd)
        return f"{file.st_dev}{file.st_rdev}{file.st_ino}"[:SERIAL_SIZE]

    @property
    def sectors(self) -> int:
        """Its capacity in sectors of 512 bytes. A last one that the file has only in part counts, and is filled with zeros; with
        O_DIRECT only whole blocks count."""
        if self.direct:
            return self.size // self.geometry.logical * self.geometry.logical // SECTOR
        return -(-self.size // SECTOR)

    def refresh(self) -> bool:
        """Look at the size again; whether it has changed. Raises HostError."""
        before = self.sectors
        try:
            self.size = probe.size_of(self.fd)
        except OSError as exc:
            raise HostError("examining the disk image", exc.errno or 0, "", str(self.path)) from exc
        return self.sectors != before

    def resize(self, size: int) -> bool:
        """Make a file `size` bytes long; whether the number of sectors has changed. Raises UsageError, HostError."""
        self._check_size(size)
        try:
            os.ftruncate(self.fd, size)
        except OSError as exc:
            raise HostError(f"resizing the disk image to {size} bytes", exc.errno or 0, "", str(self.path)) from exc
        return self.refresh()

    def _check_size(self, size: int) -> None:
        unit = self.geometry.logical
        if size <= 0 or size % unit:
            raise UsageError(f"a disk cannot have {size} bytes: its blocks have {unit}")
        if self.is_device:
            raise UsageError(f"{self.path} is a block device: resize it by its own tools, then call refresh()")
        if self.readonly:
            raise UsageError(f"{self.path} is open for reading only: it cannot be resized")

    def discard(self, extent: Extent, stop: Callable[[], bool] = lambda: False) -> int:
        """Give the space of `extent` back; 0 or an errno."""
        if self.is_device:
            return _device_ioctl(self.fd, _BLKDISCARD, extent)
        return int(lib.avmm_blk_fallocate(self.fd, _PUNCH_HOLE | _KEEP_SIZE, extent.offset, extent.size))

    def write_zeroes(self, extent: Extent, stop: Callable[[], bool] = lambda: False) -> int:
        """Have `extent` read as zeros, and its space given back if it says so; 0 or an errno. Where zeros have to be written, it
        ends early, with ECANCELED, once `stop()` is true."""
        if self.is_device:
            if (
                extent.unmap
                and self.can_discard
                and not lib.avmm_blk_fallocate(self.fd, _PUNCH_HOLE | _KEEP_SIZE, extent.offset, extent.size)
            ):
                return 0
            return _device_ioctl(self.fd, _BLKZEROOUT, extent)
        mode = _PUNCH_HOLE if extent.unmap and self.can_discard else _ZERO_RANGE
        error = int(lib.avmm_blk_fallocate(self.fd, mode | _KEEP_SIZE, extent.offset, extent.size))
        if error in (errno.EOPNOTSUPP, errno.ENOSYS):
            # by O_DIRECT only what is aligned could be written: the driver writes the zeros itself when it hears of it
            return errno.EOPNOTSUPP if self.direct else self._write_zeros(extent, stop)
        return error

    def flush(self) -> int:
        """Make what was written stable; 0 or an errno."""
        try:
            os.fdatasync(self.fd)
        except OSError as exc:
            return exc.errno or errno.EIO
        return 0

    def close(self) -> None:
        """Close and unlock. Idempotent."""
        if self.fd >= 0:
            let_go_of(self.fd)
        self.fd = -1

    def try_discard(self) -> bool:
        """Whether space can be given back. Of a file it changes the time of change."""
        if self.is_device:
            return probe.device_discards(self.fd)
        # beyond the end of the file there is nothing to lose
        beyond = -(-probe.size_of(self.fd) // 4096) * 4096
        return not lib.avmm_blk_fallocate(self.fd, _PUNCH_HOLE | _KEEP_SIZE, beyond, 4096)

    def _write_zeros(self, extent: Extent, stop: Callable[[], bool]) -> int:
        at, end = extent.offset, extent.offset + extent.size
        try:
            while at < end:
                if stop():
                    return errno.ECANCELED
                at += os.pwrite(self.fd, _ZEROS[: end - at], at)
        except OSError as exc:
            return exc.errno or errno.EIO
        return 0


def let_go_of(fd: int) -> None:
    """Unlock and close: a child that was forked meanwhile may have it open yet."""
    ofdlock.unlock(fd)
    os.close(let_go(fd))


def _refuse_other_formats(path: Path, fd: int) -> None:
    """Raises ImageError for an image that is not raw, as far as one can see, and OSError. It is read by a descriptor of its own,
    for `fd` may take whole blocks alone."""
    with open_file(path) as file:
        if not os.path.sameopenfile(file.fileno(), fd):
            raise ImageError(str(path), "was replaced by another file while it was opened", "nobody else is to do so")
        found = format_of_open_file(file)
    if found == OVERLAY:
        hint = "say path=BASE,overlay=THIS; or overlay=NEW,backing_files=on for an overlay of it"
        raise ImageError(str(path), f"is a {found} image of aiovmm", hint)
    if found is not None:
        hint = "`qemu-img convert -O raw IMAGE NEW` makes a raw one; image_type=raw takes it as it is, headers and all"
        raise ImageError(str(path), f"is a {found} image, and disks are raw here", hint)


def _device_ioctl(fd: int, request: int, extent: Extent) -> int:
    try:
        fcntl.ioctl(fd, request, struct.pack("@QQ", extent.offset, extent.size))
    except OSError as exc:
        return exc.errno or errno.EIO
    return 0


def _open_hint(number: int | None, direct: bool) -> str:
    if number == errno.ENOENT:
        return "create it, for instance by `truncate -s 10G FILE`"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "say readonly=on, or change its permissions"
    if number == errno.EINVAL and direct:
        return "its file system refuses O_DIRECT: leave direct off"
    return ""
