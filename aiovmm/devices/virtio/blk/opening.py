"""The image that a disk's configuration names."""

from __future__ import annotations

from collections.abc import Callable

from aiovmm.config import DiskConfig, ImageType
from aiovmm.devices.virtio.blk.image import DiskImage
from aiovmm.errors import ConfigError

__all__ = ["opener"]


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


def _open_overlay(config: DiskConfig) -> DiskImage:
    from aiovmm.devices.virtio.blk.overlay.image import OverlayImage, open_base

    assert config.path is not None
    assert config.overlay is not None
    base = open_base(
        config.path,
        direct=config.direct,
        raw=config.image_type is ImageType.RAW,
        sparse=config.sparse,
        lock=config.lock_granularity,
        backing_files=config.backing_files,
    )
    return OverlayImage.open_over(base, config.overlay, readonly=config.readonly)
