"""The files of overlays: made whole or not at all, opened, and their headers read and written."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import tempfile
import uuid
from pathlib import Path

from aiovmm.devices.virtio.blk.image import let_go_of
from aiovmm.devices.virtio.blk.lock import lock_image
from aiovmm.devices.virtio.blk.overlay.base import Base
from aiovmm.devices.virtio.blk.overlay.header import (
    COPIES,
    COPY_SIZE,
    MAGIC,
    BaseKind,
    Header,
    Identity,
    layout,
    newest,
)
from aiovmm.devices.virtio.blk.protocol import SECTOR
from aiovmm.devices.virtio.formats import open_file, open_image
from aiovmm.errors import HostError, ImageError
from aiovmm.native import lib
from aiovmm.runtime.forks import keep_private
from aiovmm.runtime.new_file import appearing

__all__ = [
    "create_overlay",
    "identity_of",
    "name_of_base",
    "read_header",
    "reserve_map",
    "sync_directory",
    "write_header",
]

_KEEP_SIZE = 1  # <linux/falloc.h>


def identity_of(base: Base) -> Identity:
    """What `base` is now. Raises OSError."""
    image = base.image
    status = os.fstat(image.fd)
    if stat.S_ISBLK(status.st_mode):
        return Identity(BaseKind.DEVICE, image.size, 0, status.st_rdev)
    header = getattr(image, "header", None)
    if header is not None:
        return Identity(BaseKind.OVERLAY, image.size, status.st_mtime_ns, status.st_ino, header.uuid)
    return Identity(BaseKind.FILE, image.size, status.st_mtime_ns, status.st_ino)


def name_of_base(overlay: Path, base: Path) -> Path:
    """How an overlay is to call its base: relative to itself if that is beside it or below, else absolute."""
    place, target = Path(os.path.realpath(overlay.parent)), Path(os.path.realpath(base))
    return target.relative_to(place) if target.is_relative_to(place) else target


def create_overlay(path: Path, base: Base) -> None:
    """Make an empty overlay over `base`. It appears whole, or not at all, and never in the place of another file. Raises
    HostError, ImageError."""
    image = base.image
    try:
        header = layout(image.sectors * SECTOR, identity_of(base), name_of_base(path, image.path), uuid.uuid4().bytes)
        copy = header.pack()
        with appearing(path) as fd:
            os.ftruncate(fd, header.data_at + header.size)
            reserve_map(fd, header)
            os.pwrite(fd, copy, 0)
        sync_directory(path)
    except OSError as exc:
        raise HostError("making the overlay", exc.errno or 0, "", str(path)) from exc


def reserve_map(fd: int, header: Header) -> None:
    """Have room for the header and the map: when data has filled the file system, it must be possible to say that it is there.
    Raises OSError."""
    error = int(lib.avmm_blk_fallocate(fd, _KEEP_SIZE, 0, header.map_at + header.map_used))
    if error not in (0, errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(error, os.strerror(error))


def sync_directory(path: Path) -> None:
    """A new name in the directory of `path` is on the medium. Raises OSError."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_header(fd: int, name: str) -> Header:
    """Raises OSError, ImageError."""
    with mmap.mmap(-1, COPIES * COPY_SIZE) as page, memoryview(page) as view:  # aligned: it may be open with O_DIRECT
        size = os.preadv(fd, [view], 0)
        return newest(bytes(view[:size]), name)


def write_header(fd: int, header: Header) -> None:
    """Over the copy that does not count, so that one is whole at any time. On the medium when it returns. Raises OSError,
    ImageError."""
    with mmap.mmap(-1, COPY_SIZE) as page, memoryview(page) as view:
        view[:] = header.pack()
        done = os.pwritev(fd, [view], (header.generation - 1) % COPIES * COPY_SIZE)
    if done != COPY_SIZE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fdatasync(fd)


def open_overlay(path: Path, *, readonly: bool, direct: bool = False) -> tuple[int, Header]:
    """An overlay's file, locked, and its header. Raises HostError, ImageError."""
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | (os.O_DIRECT if direct else 0)
    try:
        if not path.is_file() and path.exists():
            raise ImageError(str(path), "is no overlay: it is no file")
        fd = open_image(path, flags)
    except OSError as exc:
        hint = "say readonly=off to have it made" if exc.errno == errno.ENOENT and readonly else ""
        raise HostError("opening the overlay", exc.errno or 0, hint, str(path)) from exc
    try:
        keep_private(fd)
        lock_image(fd, str(path), shared=readonly)
        header = read_header(fd, str(path))
        if os.fstat(fd).st_size < header.data_at + header.size:
            raise ImageError(str(path), "was cut short: its header says that it is longer", "take a copy that is whole")
    except BaseException:
        let_go_of(fd)
        raise
    return fd, header


def is_overlay(path: Path) -> bool:
    """Whether the file says so. False if it cannot be read, which others tell of."""
    try:
        if not path.is_file():
            return False
        with open_file(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def unnamed(directory: str, direct: bool) -> int:
    """A file without a name, with O_DIRECT only where the file system has it: what is cached of a file that goes with its
    user harms nobody. Raises OSError."""
    flags = os.O_RDWR | os.O_CLOEXEC
    for direct_flag in (os.O_DIRECT, 0) if direct else (0,):
        try:
            return os.open(directory, flags | direct_flag | os.O_TMPFILE, 0o600)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
    fd, name = tempfile.mkstemp(dir=directory)
    os.unlink(name)
    return fd
