"""Devices whose queues are served by other processes over vhost-user."""

from __future__ import annotations

from aiovmm.devices.virtio.vhost_user.blk import VhostUserBlk
from aiovmm.devices.virtio.vhost_user.device import VhostUserDevice
from aiovmm.devices.virtio.vhost_user.fs import VhostUserFs
from aiovmm.devices.virtio.vhost_user.generic import VhostUserGeneric
from aiovmm.devices.virtio.vhost_user.net import VhostUserNet

__all__ = ["VhostUserBlk", "VhostUserDevice", "VhostUserFs", "VhostUserGeneric", "VhostUserNet"]
