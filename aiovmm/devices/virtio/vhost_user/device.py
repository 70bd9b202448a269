"""What devices served by a vhost-user back end have in common."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from aiovmm.errors import ConfigError, UsageError
from aiovmm.memory import AddressSpace, GuestMemory
from aiovmm.vhost_user import Frontend, Resume, Timing, VhostUserBackend
from aiovmm.vhost_user.protocol import ProtocolFeature
from aiovmm.virtqueue.backend import VirtioBackend
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.features import RING_FEATURES
from aiovmm.virtqueue.queue import Queue
from aiovmm.virtqueue.runner import CreateTask

__all__ = ["VhostUserDevice"]

_ALWAYS = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.STATUS
)


class VhostUserDevice(VirtioDevice):
    """The front end at the unix socket `path`. Subclasses say which features are theirs; the back end chooses among them."""

    shares_memory = True
    _awaits_peer = True
    resume = Resume.IF_IDLE
    wanted = _ALWAYS
    known_features = 0
    """The device's feature bits that we understand: no others are passed on."""
    config_size = 0
    """Bytes of the configuration space that are the back end's; 0: it is ours."""

    def __init__(
        self, path: str | os.PathLike[str], queue_sizes: tuple[int, ...], *, name: str, timing: Timing | None = None
    ) -> None:
        self.name = name
        self.queue_sizes = queue_sizes
        self.ring_features = RING_FEATURES
        self.backend: VhostUserBackend | None = None
        """Of the present machine."""
        self.frontend = Frontend(
            path,
            self.wanted,
            self.config_size,
            timing or Timing(),
        )
        self._config = bytearray(self.config_size)
        self._known = False
        self._broken: Callable[[Exception], None] | None = None

    async def open(self) -> None:
        """Find the back end and learn what it offers. Raises HostError if nobody listens, PeerError, and ConfigError for what
        was asked for and it does not have."""
        self.frontend.who = self.label
        self.frontend.on_config, self.frontend.on_refused = self._config_read, self._refused
        try:
            await self.frontend.open()
            offer = self.frontend.offer
            self._check_queues(offer.queues)
            self.ring_features = RING_FEATURES & offer.features
            self.features = self.select_features(offer.features)
            self._known = True
        except BaseException:
            await self.frontend.close()
            raise

    async def close(self) -> None:
        """End the connection."""
        await self.frontend.close()
        self.backend = self._broken = None

    def select_features(self, offered: int) -> int:
        """The device's bits to offer to the driver, of those that the back end offers. Raises ConfigError."""
        return offered & self.known_features

    @property
    def served_queues(self) -> int:
        """Queues that the back end serves."""
        return len(self.queue_sizes)

    def make_backend(
        self, memory: AddressSpace, broken: Callable[[Exception], None], create_task: CreateTask
    ) -> VirtioBackend:
        """See virtqueue.backend.ServedElsewhere. Raises UsageError for memory that no other process can be given."""
        return self.serve(memory, broken)

    def serve(self, memory: AddressSpace, broken: Callable[[Exception], None]) -> VhostUserBackend:
        """The part of `make_backend` that is the same for all."""
        if not isinstance(memory, GuestMemory):
            raise UsageError(f"{self.name}: a vhost-user back end cannot stand behind an IOMMU")
        self._broken = broken
        self.backend = VhostUserBackend(
            self.frontend, memory, broken, resume=self.resume, on_reset=self.reset, away=self.report
        )
        return self.backend

    async def run(self, queues: list[Queue], features: int) -> None:
        """Raises UsageError: the queues are served by another process."""
        raise UsageError(f"{self.name} is served by a vhost-user back end")

    def read_config(self, offset: int, size: int) -> bytes:
        """What the back end said last."""
        return bytes(self._config[offset : offset + size]).ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """Passed on, where the space is the back end's; the driver waits until that has it. One that has not agreed to hear of it
        would end the connection."""
        has_config = self.frontend.offer.protocol & ProtocolFeature.CONFIG
        if not data or not has_config or offset + len(data) > self.config_size:
            return None
        self._config[offset : offset + len(data)] = data
        return self.frontend.write_config(offset, data)

    def adjust_config(self, config: bytearray) -> None:
        """A subclass changes what the back end says about itself to what the driver shall see."""
        return

    def _config_read(self, data: bytes) -> None:
        config = bytearray(data)
        self.adjust_config(config)
        changed = config != self._config
        self._config = config
        if self._known and changed:
            self.config_changed()

    def _check_queues(self, offered: int | None) -> None:
        if offered is not None and self.served_queues > offered:
            raise ConfigError(
                f"{self.name}.num_queues", f"the back end has {offered} queues, {self.served_queues} are wanted"
            )

    def _refused(self, error: Exception) -> None:
        if self._broken is not None:
            self._broken(error)
