"""The image that a disk's configuration names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aiovmm.config import DiskConfig, ImageType
from aiovmm.devices.virtio.blk.image import DiskImage
from aiovmm.devices.virtio.formats import format_of_file
from aiovmm.errors import ConfigError

if TYPE_CHECKING:
    from aiovmm.devices.virtio.blk.overlay.base import Base

__all__ = ["base_of", "kind_of", "looks_alone_tell", "opener"]

_KINDS = {"qcow2": ImageType.QCOW2, "VHD": ImageType.VHD, "VHDX": ImageType.VHDX}


def looks_alone_tell(config: DiskConfig) -> bool:
    """Whether the image has to be read to know of what kind it is."""
    return config.image_type is None and config.path is not None and config.overlay is None


def kind_of(config: DiskConfig) -> ImageType | None:
    """What kind of image that is, if it is none of this monitor's own: by the configuration's word, or else by how it looks.
    Blocks for as long as two reads take, where looks alone tell."""
    if not looks_alone_tell(config):
        return None if config.image_type is ImageType.RAW else config.image_type
    assert config.path is not None, "it can be looked at"
    try:
        if not config.path.is_file() and not config.path.is_block_device():
            return None  # which is told when it is opened
        return _KINDS.get(format_of_file(config.path) or "")
    except OSError:
        return None


def opener(config: DiskConfig) -> Callable[[], DiskImage]:
    """A function that opens it, which may block and raises HostError and ImageError. Raises ConfigError for a disk that is
    another process's."""
    path = config.path
    if path is None:
        raise ConfigError("disk.vhost_user", "is not a back end of this device")
    if config.overlay is not None:
        return lambda: _open_overlay(config)
    return lambda: DiskImage.open(
        path,
        readonly=config.readonly,
        direct=config.direct,
        raw=config.image_type is ImageType.RAW,
        sparse=config.sparse,
        lock=config.lock_granularity,
    )


def base_of(config: DiskConfig) -> Base:
    """What such a disk has now, to be put overlays over: of one with an overlay that, over the image that is configured.
    Locked for reading. Raises HostError, ImageError; may block."""
    if config.overlay is None:
        return _base(config)
    from aiovmm.devices.virtio.blk.overlay.base import Base
    from aiovmm.devices.virtio.blk.overlay.image import OverlayImage

    return Base(OverlayImage.open_over(_base(config), config.overlay, readonly=True))


def _open_overlay(config: DiskConfig) -> DiskImage:
    from aiovmm.devices.virtio.blk.overlay.image import OverlayImage

    assert config.overlay is not None
    return OverlayImage.open_over(_base(config), config.overlay, readonly=config.readonly)


def _base(config: DiskConfig) -> Base:
    from aiovmm.devices.virtio.blk.overlay.chain import open_base

    assert config.path is not None, "it is another process's"
    return open_base(
        config.path,
        direct=config.direct,
        raw=config.image_type is ImageType.RAW,
        sparse=config.sparse,
        lock=config.lock_granularity,
        backing_files=config.backing_files,
    )
