"""The disks of a template, as they were when it froze: bases for the overlays that forks have over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Self

from aiovmm.config import DiskConfig, VMConfig
from aiovmm.config.ids import device_ids
from aiovmm.errors import SnapshotError

if TYPE_CHECKING:
    from aiovmm.devices.virtio.blk.image import DiskImage
    from aiovmm.devices.virtio.blk.overlay.base import Base
    from aiovmm.machine.parts import PluggedDevice

__all__ = ["DiskBases"]

_RO = 1 << 5  # VIRTIO_BLK_F_RO


class DiskBases:
    """By the ids of those that can be written to; read-only ones need none. They stay locked as the guest had them, so that
    nobody changes them. `release` when there are to be no more forks; overlays that are there keep what they need."""

    def __init__(self, bases: dict[str, Base]) -> None:
        self._bases = bases

    @classmethod
    async def frozen(cls, plugged: list[PluggedDevice]) -> Self:
        """Of the devices of a guest that has stopped for good: its disks are closed by this. Raises HostError."""
        disks = cls({})
        if not plugged:
            return disks
        from aiovmm.devices.virtio.blk import BlkDevice

        try:
            for p in plugged:
                if isinstance(p.device, BlkDevice) and not p.device.features & _RO:
                    disks._bases[p.id] = await p.device.freeze()
        except BaseException:
            disks.release()
            raise
        return disks

    @classmethod
    def opened(cls, config: VMConfig) -> Self:
        """Those of `config`, as they are now. In a thread. Raises HostError, ImageError, SnapshotError."""
        disks = cls({})
        try:
            for id_, disk in zip(device_ids(config).get("disks", ()), config.disks, strict=True):
                if not disk.readonly:
                    disks._bases[id_] = _open(disk)
        except BaseException:
            disks.release()
            raise
        return disks

    def overlays(self) -> Mapping[str, Callable[[], DiskImage]]:
        """By the ids of the disks: what opens an overlay of its own, which goes with its guest."""
        if not self._bases:
            return {}
        from aiovmm.devices.virtio.blk.overlay.image import OverlayImage

        return {id_: partial(OverlayImage.temporary, base) for id_, base in self._bases.items()}

    def hold(self) -> DiskBases:
        """The same, for who is to release them too."""
        return DiskBases({id_: base.hold() for id_, base in self._bases.items()})

    def release(self) -> None:
        """Idempotent."""
        while self._bases:
            self._bases.popitem()[1].release()


def _open(disk: DiskConfig) -> Base:
    if disk.path is None:
        raise SnapshotError(
            f"its disk at {disk.socket} is another process's (vhost_user=on), and nothing can be put over it for each guest: "
            "give the guest that is to be forked an image by path="
        )
    from aiovmm.devices.virtio.blk.opening import base_of

    return base_of(disk)
