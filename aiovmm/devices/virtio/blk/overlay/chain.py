"""Which base goes with an overlay, and the bases of bases."""

from __future__ import annotations

import os
from pathlib import Path

from aiovmm.config.disk import LockGranularity
from aiovmm.devices.virtio.blk.image import DiskImage, let_go_of
from aiovmm.devices.virtio.blk.overlay.base import Base
from aiovmm.devices.virtio.blk.overlay.checks import MOST_LAYERS
from aiovmm.devices.virtio.blk.overlay.file import is_overlay, open_overlay
from aiovmm.devices.virtio.blk.overlay.image import OverlayImage
from aiovmm.errors import ImageError

__all__ = ["open_base"]


def open_base(
    path: str | os.PathLike[str],
    *,
    direct: bool = False,
    raw: bool = False,
    sparse: bool = True,
    lock: LockGranularity = LockGranularity.FULL,
    backing_files: bool = False,
    depth: int = 0,
) -> Base:
    """A raw image, a device, or an overlay, for reading, locked shared. The base of an overlay is the one that its header names;
    that is followed only if `backing_files` says so: whoever made the file chose it. Raises HostError, ImageError."""
    path = Path(path)
    if raw or not is_overlay(path):
        image: DiskImage = DiskImage.open(path, readonly=True, direct=direct, raw=raw, sparse=sparse, lock=lock)
        image.marks_matter = not raw
        return Base(image)
    if not backing_files:
        raise ImageError(
            str(path), "is an overlay, with a base that its header names", "say backing_files=on to have that followed"
        )
    if depth >= MOST_LAYERS:
        raise ImageError(str(path), f"has more than {MOST_LAYERS} layers, or is its own base")
    fd, header = open_overlay(path, readonly=True)
    let_go_of(fd)
    below = open_base(
        path.parent / header.base, direct=direct, sparse=sparse, lock=lock, backing_files=True, depth=depth + 1
    )
    return Base(OverlayImage.open_over(below, path, readonly=True))
