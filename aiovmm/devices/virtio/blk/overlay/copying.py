"""Copies of disks: by reflink where the file system has that, else of the data alone, so that holes stay holes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiovmm.devices.virtio.blk.image import DiskImage
from aiovmm.devices.virtio.blk.overlay.file import sync_directory
from aiovmm.devices.virtio.blk.overlay.layer import Layer
from aiovmm.devices.virtio.blk.protocol import SECTOR
from aiovmm.errors import HostError
from aiovmm.native import ffi, lib
from aiovmm.runtime import new_file

__all__ = ["appearing", "copy_image", "pieces", "read_at", "write_all"]

_FICLONE = 0x40049409  # <linux/fs.h>
_NO_REFLINK = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM)
_STEP = 4 << 20
_HOLE = 64 << 10  # bytes of zeros that are worth one


def copy_image(image: DiskImage, new: Path) -> bool:
    """Have a raw file `new` with what a guest would see of `image`, which may be an overlay. Whether it shares its blocks with
    it, which takes no time and no space. It appears whole, or not at all, and never in the place of another file. Raises
    HostError."""
    with appearing(new) as fd:
        if image.top_layer is None and not image.is_device and clone(image.fd, fd):
            return True
        os.ftruncate(fd, image.size if image.top_layer is None else image.sectors * SECTOR)
        layer = image.top_layer or Layer(image.fd, image.size)
        for at, size, depth in pieces(layer, image.size):
            if depth >= 0:
                _copy_data(layer, at, size, fd, depth)
    return False


def clone(source: int, target: int) -> bool:
    """Share all blocks; whether the file system can. Raises OSError for what else goes wrong."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as exc:
        if exc.errno not in _NO_REFLINK:
            raise
        return False
    return True


def pieces(layer: Layer, size: int, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """(offset, bytes, depth) of all that lies together: 0 in the layer itself, 1 in the next one, ..., -1: zeros."""
    run = ffi.new("uint64_t *")
    at = start
    while at < size:
        if layer.native.map == ffi.NULL:
            yield at, size - at, 0
            return
        depth = int(lib.avmm_blk_layer_find(layer.native, at, size - at, run))
        yield at, int(run[0]), depth
        at += int(run[0])


def read_at(layer: Layer, at: int, size: int, depth: int) -> bytes:
    """What a piece has, or the beginning of it. Raises OSError."""
    if depth < 0:
        return bytes(min(size, _STEP))
    below = layer.native
    for _ in range(depth):
        below = below.below
    data = os.pread(below.fd, min(size, _STEP), below.data_at + at)
    if not data:
        raise OSError(errno.EIO, "the file ends where there should be data")
    return data


def write_all(fd: int, data: bytes, at: int) -> None:
    """Raises OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        at += done
        view = view[done:]


def _copy_data(layer: Layer, at: int, size: int, target: int, depth: int) -> None:
    end = at + size
    while at < end:
        data = read_at(layer, at, end - at, depth)
        for part in range(0, len(data), _HOLE):
            some = data[part : part + _HOLE]
            if some.count(0) != len(some):
                write_all(target, some, at + part)
        at += len(data)


@contextmanager
def appearing(path: Path) -> Iterator[int]:
    """A new file that gets its name when the block ends well, and is on the medium then. Raises HostError, also for the block's
    OSErrors."""
    if not path.name:  # "/" and "."
        raise HostError("making the file", errno.EEXIST, "choose another name", str(path))
    try:
        with new_file.appearing(path) as fd:
            yield fd
        sync_directory(path)
    except HostError:
        raise
    except OSError as exc:
        hint = "remove that file, or choose another name" if exc.errno == errno.EEXIST else ""
        raise HostError("making the file", exc.errno or 0, hint, str(path)) from exc
