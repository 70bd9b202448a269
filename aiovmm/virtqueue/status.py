"""Device status and feature negotiation (VIRTIO 1.2 §2.1, §2.2, §3.1.1), one pure machine for every transport.

The driver walks through these states by setting bits of the status register; it may skip none and clears none:

    state          status bits                   the driver's next step, and when it is taken
    -------------  ----------------------------  ---------------------------------------------------------------
    RESET          0                             ACKNOWLEDGE
    ACKNOWLEDGED   ACKNOWLEDGE                   DRIVER
    NEGOTIATING    ... | DRIVER                  FEATURES_OK: refused (the bit stays clear) unless the features are
                                                 a subset of the offer, hold what is required, and suit the device
    CONFIGURING    ... | FEATURES_OK             DRIVER_OK: `Activate`
    LIVE           ... | DRIVER_OK               -
    any            ... | FAILED                  the driver has given up: only a reset leads out
    any            ... | DEVICE_NEEDS_RESET      set by the device only
    any            write of 0                    `Reset`; the register reads 0 only after `reset_done()`

Features can be written while NEGOTIATING (and before), queues configured until LIVE. What does not fit the state is
ignored, as a device does: the driver reads the register back. Methods return the effects that the transport carries out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

from aiovmm.errors import SnapshotError
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State, once
from aiovmm.virtqueue.config import QueueConfig
from aiovmm.virtqueue.features import ACCESS_PLATFORM, RING_RESET, VERSION_1

__all__ = ["Activate", "DriverFailed", "Effect", "Negotiation", "ResetDevice", "ResetQueue", "Status"]

_MASK32 = 0xFFFFFFFF


class Status(enum.IntFlag):
    """The device status field, VIRTIO 1.2 §2.1."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


@dataclass(frozen=True)
class Activate:
    """The device is to start, with the features that were agreed on."""

    features: int


@dataclass(frozen=True)
class ResetDevice:
    """The device is to stop; call `reset_done()` when it has."""


@dataclass(frozen=True)
class ResetQueue:
    """One queue is to stop (VIRTIO_F_RING_RESET); call `queue_reset_done(index)` when it has."""

    index: int


@dataclass(frozen=True)
class DriverFailed:
    """The driver has set FAILED: it will not use the device until it resets it. For the log."""


Effect = Activate | ResetDevice | ResetQueue | DriverFailed

_RESET = Status(0)

# What must be set before a bit can be; a write that sets several is taken bit by bit in this order.
_STEPS = (
    (Status.ACKNOWLEDGE, Status(0)),
    (Status.DRIVER, Status.ACKNOWLEDGE),
    (Status.FEATURES_OK, Status.ACKNOWLEDGE | Status.DRIVER),
    (Status.DRIVER_OK, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK),
    (Status.FAILED, Status(0)),
)


class Negotiation:
    """Status, features and queue registers of one device, as plain data; register names are those of §4.1.4.3.

    `offered` are all feature bits, `queue_sizes` the largest size of each queue, `accepts` the device's own check.
    """

    def __init__(
        self, offered: int, queue_sizes: Sequence[int], accepts: Callable[[int], bool] = lambda features: True
    ) -> None:
        self.offered = offered
        self.status = _RESET
        self.driver_features = 0
        self.device_feature_select = 0
        self.driver_feature_select = 0
        self.queue_select = 0
        self.config_generation = 0
        self.queues = [QueueConfig(size) for size in queue_sizes]
        self.resetting = False
        self._resetting_queues: set[int] = set()
        self._accepts = accepts

    # -- features ------------------------------------------------------------------------------------------------------

    @property
    def device_feature(self) -> int:
        """32 of the offered bits, as `device_feature_select` chooses; 0 beyond the bits there are."""
        return self.offered >> (32 * self.device_feature_select) & _MASK32 if self.device_feature_select < 4 else 0

    @property
    def driver_feature(self) -> int:
        """32 of the bits the driver has written, as `driver_feature_select` chooses."""
        return (
            self.driver_features >> (32 * self.driver_feature_select) & _MASK32 if self.driver_feature_select < 4 else 0
        )

    def write_driver_feature(self, value: int) -> None:
        """The driver accepts 32 bits. Ignored once FEATURES_OK is set (§3.1.1 step 5)."""
        if self.resetting or self.driver_feature_select >= 4 or self.status & Status.FEATURES_OK:
            return
        shift = 32 * self.driver_feature_select
        self.driver_features = self.driver_features & ~(_MASK32 << shift) | (value & _MASK32) << shift

    @property
    def features(self) -> int:
        """What was negotiated; 0 before FEATURES_OK."""
        return self.driver_features if self.status & Status.FEATURES_OK else 0

    def _features_fit(self) -> bool:
        return not self.driver_features & ~self.offered and self._fit(self.driver_features)

    def _fit(self, features: int) -> bool:
        required = (
            VERSION_1 | self.offered & ACCESS_PLATFORM
        )  # we are no legacy device (§6.1); §6.2 for ACCESS_PLATFORM
        return features & required == required and self._accepts(features)

    # -- status --------------------------------------------------------------------------------------------------------

    def write_status(self, value: int) -> list[Effect]:
        """The driver writes device_status."""
        if self.resetting:
            return []
        if value == 0:
            self.resetting = True
            return [ResetDevice()]
        wanted = Status(value & 0xFF) & ~Status.NEEDS_RESET
        if self.status & ~Status.NEEDS_RESET & ~wanted:  # §2.1.1: the driver must not clear a bit
            return []
        effects: list[Effect] = []
        for bit, needed in _STEPS:
            if not wanted & bit or self.status & bit or self.status & needed != needed or self._given_up:
                continue
            if bit is Status.FEATURES_OK and not self._features_fit():
                continue
            self.status |= bit
            if bit is Status.DRIVER_OK:
                effects.append(Activate(self.driver_features))
            elif bit is Status.FAILED:
                effects.append(DriverFailed())
        return effects

    @property
    def _given_up(self) -> bool:
        return bool(self.status & Status.FAILED)

    def needs_reset(self) -> bool:
        """The device is broken (§2.1.2). True if the driver has to be told by a configuration change interrupt."""
        if self.resetting or self.status & Status.NEEDS_RESET:
            return False
        self.status |= Status.NEEDS_RESET
        return bool(self.status & Status.DRIVER_OK)

    def reset_done(self) -> None:
        """The device has stopped: everything is back to its initial state and device_status reads 0."""
        self.status = _RESET
        self.driver_features = 0
        self.device_feature_select = self.driver_feature_select = self.queue_select = 0
        self.resetting = False
        self._resetting_queues.clear()
        for queue in self.queues:
            queue.reset()

    @property
    def live(self) -> bool:
        """Whether the device may use its queues."""
        return bool(self.status & Status.DRIVER_OK) and not self.resetting

    def config_changed(self) -> bool:
        """The configuration space changed: a new generation. True if the driver is there to be interrupted."""
        self.config_generation = (self.config_generation + 1) & 0xFF
        return self.live

    # -- for a snapshot --------------------------------------------------------------------------------------------------

    def save(self) -> State:
        """All registers, while nothing is being reset."""
        return {
            "status": int(self.status),
            "driver_features": self.driver_features,
            "device_feature_select": self.device_feature_select,
            "driver_feature_select": self.driver_feature_select,
            "queue_select": self.queue_select,
            "config_generation": self.config_generation,
            "queues": [queue.save() for queue in self.queues],
        }

    def load(self, state: State, vectors: int) -> None:
        """Of a device with `vectors` vectors. Raises SnapshotError, also if the driver relies on what this device does not
        offer."""
        saved = once(state, _read, tuple(queue.max_size for queue in self.queues), vectors)
        if int(saved.status) & int(Status.FEATURES_OK):
            self._check_features(saved.driver_features)
        self.status, self.driver_features = saved.status, saved.driver_features
        self.device_feature_select, self.driver_feature_select = saved.device_select, saved.driver_select
        self.queue_select, self.config_generation = saved.queue_select, saved.config_generation
        for queue, was in zip(self.queues, saved.queues, strict=True):
            queue.become(was)

    def _check_features(self, features: int) -> None:
        if missing := features & ~self.offered:
            bits = ", ".join(str(bit) for bit in range(128) if missing >> bit & 1)
            raise SnapshotError(f"its driver uses features that the device does not offer here: bits {bits}")
        if not self._fit(features):
            raise SnapshotError(f"its driver cannot have been given the features {features:#x}")

    # -- queues --------------------------------------------------------------------------------------------------------

    @property
    def queue(self) -> QueueConfig | None:
        """The selected queue, or None if there is none (its registers read 0 then, §4.1.4.3.1)."""
        return self.queues[self.queue_select] if self.queue_select < len(self.queues) else None

    @property
    def configurable_queue(self) -> QueueConfig | None:
        """The selected queue while its registers can be written: not enabled yet, and the device not live."""
        queue = self.queue
        frozen = self.resetting or (self.live and not self._restartable)
        return None if queue is None or queue.ready or frozen else queue

    @property
    def _restartable(self) -> bool:
        return bool(self.driver_features & RING_RESET)

    def enable_queue(self, value: int) -> None:
        """queue_enable: only 1 has a meaning (§4.1.4.3.2). Sizes and addresses are checked at activation."""
        queue = self.configurable_queue
        if queue is not None and value == 1 and self.queue_select not in self._resetting_queues:
            queue.ready = True

    def write_queue_reset(self, value: int) -> list[Effect]:
        """queue_reset (VIRTIO 1.2 §2.6.1): stop the selected queue."""
        queue = self.queue
        if queue is None or value != 1 or not self._restartable or not self.live or not queue.ready:
            return []
        if self.queue_select in self._resetting_queues:
            return []
        self._resetting_queues.add(self.queue_select)
        return [ResetQueue(self.queue_select)]

    @property
    def queue_reset(self) -> int:
        """Reads 1 while the selected queue is being reset."""
        return int(self.queue_select in self._resetting_queues)

    def queue_reset_done(self, index: int) -> None:
        """The queue has stopped: its registers are initial and can be written again."""
        self._resetting_queues.discard(index)
        self.queues[index].reset()


@dataclass(frozen=True, eq=False)
class _Saved:
    """What `Negotiation.save` gave. Nobody changes the queues."""

    status: Status
    driver_features: int
    device_select: int
    driver_select: int
    queue_select: int
    config_generation: int
    queues: tuple[QueueConfig, ...]


def _read(state: State, sizes: tuple[int, ...], vectors: int) -> _Saved:
    """Of a device with `vectors` vectors, and queues of `sizes` at most. Raises SnapshotError."""
    fields = Fields(state, "virtio")
    status, features = fields.number("status", 0, 0xFF), fields.number("driver_features", 0, (1 << 128) - 1)
    device_select, driver_select = (fields.number(f"{n}_feature_select", 0, _MASK32) for n in ("device", "driver"))
    select, generation = fields.number("queue_select", 0, 0xFFFF), fields.number("config_generation", 0, 0xFF)
    several = zip(fields.several("queues", len(sizes)), sizes, strict=True)
    queues = tuple(QueueConfig.read(saved, size, vectors) for saved, size in several)
    fields.end()
    if status & 0x30 or any(status & bit and status & needed != needed for bit, needed in _STEPS):
        raise SnapshotError(f"no driver takes a device to the status {status:#x}")
    return _Saved(Status(status), features, device_select, driver_select, select, generation, queues)
