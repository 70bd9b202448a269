"""A disk's state that nobody changes any more, shared by any number of overlays."""

from __future__ import annotations

import threading

from aiovmm.devices.virtio.blk.image import DiskImage
from aiovmm.devices.virtio.blk.overlay.layer import Layer

__all__ = ["Base"]


class Base:
    """An open image, raw or an overlay, that is read and never written again. It is closed when who made it and all overlays have
    released it; from any thread.

        base = await disk.freeze()
        child = OverlayImage.temporary(base)  # blocks for some microseconds; is closed like any image
        base.release()

    `readonly`: so is what is put over it.
    """

    def __init__(self, image: DiskImage, *, readonly: bool = False) -> None:
        """The image is the base's from now on."""
        self.image = image
        self.readonly = readonly
        layer = image.top_layer
        if layer is None:
            layer = Layer(image.fd, image.size)
        self.layer: Layer = layer
        self._count = 1
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of the disk that it has; what an overlay has more of shows zeros."""
        return self.image.size

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return 1 + (self.image.base.depth if self.image.base is not None else 0)

    def hold(self) -> Base:
        """One more release is due."""
        with self._lock:
            assert self._count > 0, "it is closed"
            self._count += 1
        return self

    def release(self) -> None:
        """It is not needed any more."""
        with self._lock:
            self._count -= 1
            last = not self._count
        if last:
            self.image.close()
