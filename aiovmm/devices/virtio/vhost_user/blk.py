"""A disk served by a vhost-user back end (QEMU's storage daemon, SPDK, ...)."""

from __future__ import annotations

import os

from aiovmm.config import DiskConfig
from aiovmm.devices.virtio.blk.protocol import Feature
from aiovmm.devices.virtio.vhost_user.device import VhostUserDevice
from aiovmm.errors import ConfigError
from aiovmm.vhost_user import Resume, Timing
from aiovmm.vhost_user.protocol import ProtocolFeature

__all__ = ["VhostUserBlk"]

_CONFIG_SIZE = 60  # VIRTIO 1.2 §5.2.4 up to write_zeroes_may_unmap and its padding: what every back end has
_NUM_QUEUES = 34  # offset of num_queues
_GEOMETRY = 1 << 4


class VhostUserBlk(VhostUserDevice):
    """virtio-blk: capacity, geometry and features are the back end's, the number of queues is ours up to what it has.

    A back end that dies is waited for; requests in flight are resumed by its in-flight record. Without one (QEMU's storage
    daemon keeps none) the device goes on only if nothing was in flight, and else needs a reset.
    """

    device_id = 2
    resume = Resume.IF_IDLE
    wanted = VhostUserDevice.wanted | ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ
    config_size = _CONFIG_SIZE
    known_features = _GEOMETRY | int(
        Feature.SIZE_MAX
        | Feature.SEG_MAX
        | Feature.RO
        | Feature.BLK_SIZE
        | Feature.FLUSH
        | Feature.TOPOLOGY
        | Feature.CONFIG_WCE
        | Feature.MQ
        | Feature.DISCARD
        | Feature.WRITE_ZEROES
    )

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        num_queues: int = 1,
        queue_size: int = 128,
        readonly: bool = False,
        name: str = "disk",
        timing: Timing | None = None,
    ) -> None:
        super().__init__(path, (queue_size,) * num_queues, name=name, timing=timing)
        self._readonly = readonly

    @classmethod
    def from_config(cls, config: DiskConfig, name: str = "disk") -> VhostUserBlk:
        """The disk that `config`, which has vhost_user=on, describes."""
        assert config.socket is not None
        return cls(
            config.socket,
            num_queues=config.num_queues,
            queue_size=config.queue_size,
            readonly=config.readonly,
            name=name,
        )

    def select_features(self, offered: int) -> int:
        """Raises ConfigError if the disk is to be read-only and the back end would write."""
        if not self.frontend.offer.protocol & ProtocolFeature.CONFIG:
            raise ConfigError("disk.socket", "the back end tells no capacity (VHOST_USER_PROTOCOL_F_CONFIG)")
        if self._readonly and not offered & Feature.RO:
            raise ConfigError("disk.readonly", "the back end serves the disk writable", "make it serve it read-only")
        features = super().select_features(offered)
        return features if len(self.queue_sizes) > 1 else features & ~Feature.MQ

    def adjust_config(self, config: bytearray) -> None:
        """The driver makes as many queues as it is told."""
        config[_NUM_QUEUES : _NUM_QUEUES + 2] = len(self.queue_sizes).to_bytes(2, "little")
