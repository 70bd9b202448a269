"""A shared directory served by a vhost-user back end (virtiofsd). DAX is not offered."""

from __future__ import annotations

import os

from aiovmm.config import FsConfig
from aiovmm.devices.virtio.vhost_user.device import VhostUserDevice
from aiovmm.vhost_user import Resume, Timing

__all__ = ["VhostUserFs"]

_TAG_SIZE = 36


class VhostUserFs(VhostUserDevice):
    """virtio-fs (VIRTIO 1.2 §5.11): queue 0 is for high-priority requests, `num_queues` others for all the rest.

    Open files and inode numbers are the back end's memory: if it dies the device needs a reset, and the guest a new mount.
    """

    device_id = 26
    resume = Resume.NEVER

    def __init__(
        self,
        path: str | os.PathLike[str],
        tag: str,
        *,
        num_queues: int = 1,
        queue_size: int = 1024,
        name: str = "fs",
        timing: Timing | None = None,
    ) -> None:
        super().__init__(path, (queue_size,) * (1 + num_queues), name=name, timing=timing)
        # §5.11.4: struct virtio_fs_config { u8 tag[36]; le32 num_request_queues; }
        self._config = bytearray(
            tag.encode(errors="surrogateescape").ljust(_TAG_SIZE, b"\0") + num_queues.to_bytes(4, "little")
        )

    @classmethod
    def from_config(cls, config: FsConfig, name: str = "fs") -> VhostUserFs:
        """From the configuration, which is checked."""
        return cls(config.socket, config.tag, num_queues=config.num_queues, queue_size=config.queue_size, name=name)
