"""A virtio device of any kind, served whole by a vhost-user back end: the monitor knows nothing of it but its number."""

from __future__ import annotations

import os
from collections.abc import Awaitable

from aiovmm.config import GenericVhostUserConfig
from aiovmm.devices.virtio.vhost_user.device import VhostUserDevice
from aiovmm.vhost_user import Resume, Timing
from aiovmm.vhost_user.protocol import ProtocolFeature

__all__ = ["VhostUserGeneric"]

_CONFIG_SIZE = 256  # VHOST_USER_MAX_CONFIG_SIZE: of a kind whose size is not known here
_CONFIG_SIZES = {
    1: 12,
    2: 60,
    3: 12,
    4: 0,
    8: 36,
    16: 16,
    18: 136,
    19: 8,
    20: 56,
    25: 12,
    26: 40,
    32: 0,
    34: 0,
    41: 8,
    45: 32,
}
"""Bytes of the configuration space, by the type of the device (VIRTIO 1.2, 5): a back end refuses to give more than it
has."""
_FIRST_RESERVED, _FIRST_DEVICE_HIGH = 24, 50  # VIRTIO 1.2, 6: bits 24 to 49 are the transport's and the rings'


class VhostUserGeneric(VhostUserDevice):
    """Features, configuration space and what queues are for are the back end's; their number and sizes are ours, up to
    what it has.

    What it keeps of a driver is not known here, so a back end that dies takes the device with it: it needs a reset.
    """

    resume = Resume.NEVER
    wanted = VhostUserDevice.wanted | ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ
    known_features = (1 << 64) - (1 << _FIRST_DEVICE_HIGH) | (1 << _FIRST_RESERVED) - 1

    def __init__(
        self,
        path: str | os.PathLike[str],
        device_id: int,
        queue_sizes: tuple[int, ...],
        *,
        name: str = "generic",
        timing: Timing | None = None,
    ) -> None:
        self.config_size = _CONFIG_SIZES.get(device_id, _CONFIG_SIZE)
        super().__init__(path, queue_sizes, name=name, timing=timing)
        self.device_id = device_id  # type: ignore[misc]  # of this object

    @classmethod
    def from_config(cls, config: GenericVhostUserConfig, name: str = "generic") -> VhostUserGeneric:
        """From the configuration, which is checked."""
        return cls(config.socket, config.device_type, config.queue_sizes, name=name)

    def write_config(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """Passed on; then all is read anew, for what one register says may depend on another (the selector of an input
        device)."""
        told = super().write_config(offset, data)
        return None if told is None else self._told_and_read(told)

    async def _told_and_read(self, told: Awaitable[None]) -> None:
        await told
        await self.frontend.read_anew()
