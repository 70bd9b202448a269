"""The common configuration structure (VIRTIO 1.2, 4.1.4.3): the registers of one `Negotiation`, as bytes.

`image` always holds what the driver would read, since every change comes through here, so the run loop answers reads
from it. A write of the register's own width is taken (64-bit addresses also in halves, 4.1.3.1); others are dropped.
"""

from __future__ import annotations

import struct

from aiovmm.runtime.plain import Fields, State, once
from aiovmm.virtqueue.config import NO_VECTOR, QueueConfig
from aiovmm.virtqueue.status import Effect, Negotiation

__all__ = ["ACTING", "COMMON_SIZE", "DEVICE_STATUS", "CommonConfig"]

COMMON_SIZE = 64
_LAYOUT = struct.Struct("<IIIIHHBBHHHHHQQQHH")

DEVICE_FEATURE_SELECT = 0x00
DRIVER_FEATURE_SELECT = 0x08
DRIVER_FEATURE = 0x0C
CONFIG_VECTOR = 0x10
DEVICE_STATUS = 0x14
QUEUE_SELECT = 0x16
QUEUE_SIZE = 0x18
QUEUE_VECTOR = 0x1A
QUEUE_ENABLE = 0x1C
QUEUE_DESC = 0x20
QUEUE_DRIVER = 0x28
QUEUE_DEVICE = 0x30
QUEUE_RESET = 0x3A

ACTING = frozenset((DEVICE_STATUS, QUEUE_ENABLE, QUEUE_ENABLE + 1, QUEUE_RESET, QUEUE_RESET + 1))
"""The bytes of registers that do something when they are written what they hold; writing that to any other changes nothing."""

_ADDRESSES = {QUEUE_DESC: "desc", QUEUE_DRIVER: "avail", QUEUE_DEVICE: "used"}
_WIDTHS = {
    DEVICE_FEATURE_SELECT: 4,
    DRIVER_FEATURE_SELECT: 4,
    DRIVER_FEATURE: 4,
    CONFIG_VECTOR: 2,
    DEVICE_STATUS: 1,
    QUEUE_SELECT: 2,
    QUEUE_SIZE: 2,
    QUEUE_VECTOR: 2,
    QUEUE_ENABLE: 2,
    QUEUE_RESET: 2,
}


class CommonConfig:
    """Registers over `negotiation`, for a device with `vectors` MSI-X vectors."""

    def __init__(self, negotiation: Negotiation, vectors: int) -> None:
        self.negotiation = negotiation
        self.config_vector = NO_VECTOR
        self.image = bytearray(COMMON_SIZE)
        self._vectors = vectors
        self.refresh()

    def reset_done(self) -> None:
        """The device has stopped: all registers are initial."""
        self.config_vector = NO_VECTOR
        self.negotiation.reset_done()
        self.refresh()

    def config_changed(self) -> bool:
        """The device's configuration is another now. Whether the driver is to be told."""
        tell = self.negotiation.config_changed()
        self.refresh()
        return tell

    def needs_reset(self) -> bool:
        """The device is broken: sets DEVICE_NEEDS_RESET. Whether the driver is to be told."""
        tell = self.negotiation.needs_reset()
        self.refresh()
        return tell

    def save(self) -> State:
        """All registers."""
        return {"config_vector": self.config_vector, "negotiation": self.negotiation.save()}

    def load(self, state: State) -> None:
        """Raises SnapshotError; see Negotiation.load."""
        vector, negotiation = once(state, _read)
        self.negotiation.load(negotiation, self._vectors)
        self.config_vector = self._vector(vector)
        self.refresh()

    def write(self, offset: int, data: bytes) -> list[Effect]:
        """A register write; what the transport has to do about it."""
        value = int.from_bytes(data, "little")
        effects: list[Effect] = []
        if _WIDTHS.get(offset) == len(data):
            effects = self._store(offset, value)
        elif QUEUE_DESC <= offset < QUEUE_DEVICE + 8:
            self._store_address(offset, len(data), value)
        self.refresh()
        return effects

    def refresh(self) -> None:
        """Bring `image` up to date after a change that did not come through `write`."""
        n = self.negotiation
        queue = n.queue
        shown = queue or QueueConfig(0)
        self.image[: _LAYOUT.size] = _LAYOUT.pack(
            n.device_feature_select,
            n.device_feature,
            n.driver_feature_select,
            n.driver_feature,
            self.config_vector,
            len(n.queues),
            n.status,
            n.config_generation,
            n.queue_select,
            shown.size,
            shown.vector,
            shown.ready,
            min(
                n.queue_select, len(n.queues)
            ),  # queue_notify_off; of a queue that is not there a place where nothing is
            shown.desc,
            shown.avail,
            shown.used,
            0,  # queue_notify_data: NOTIF_CONFIG_DATA is not offered
            n.queue_reset,
        )

    def _store(self, offset: int, value: int) -> list[Effect]:
        n = self.negotiation
        if offset == DEVICE_STATUS:
            return n.write_status(value)
        if offset == QUEUE_RESET:
            return n.write_queue_reset(value)
        if n.resetting:
            return []
        match offset:
            case 0x00:
                n.device_feature_select = value
            case 0x08:
                n.driver_feature_select = value
            case 0x0C:
                n.write_driver_feature(value)
            case 0x10:
                self.config_vector = self._vector(value)
            case 0x16:
                n.queue_select = value
            case 0x18:
                if n.configurable_queue is not None:
                    n.configurable_queue.size = value
            case 0x1A:
                if n.queue is not None:
                    n.queue.vector = self._vector(value)
            case 0x1C:
                n.enable_queue(value)
        return []

    def _store_address(self, offset: int, size: int, value: int) -> None:
        queue = self.negotiation.configurable_queue
        register, shift = offset & ~7, 8 * (offset & 4)
        if queue is None or (offset & 7, size) not in ((0, 4), (4, 4), (0, 8)):
            return
        old = getattr(queue, _ADDRESSES[register])
        mask = (1 << 8 * size) - 1
        setattr(queue, _ADDRESSES[register], old & ~(mask << shift) | value << shift)

    def _vector(self, value: int) -> int:
        """4.1.5.1.2: a vector that cannot be had reads back as NO_VECTOR."""
        return value if value < self._vectors else NO_VECTOR


def _read(state: State) -> tuple[int, State]:
    """The configuration's vector, and what there is of the negotiation."""
    fields = Fields(state, "common configuration")
    read = fields.number("config_vector", 0, NO_VECTOR), fields.state("negotiation")
    fields.end()
    return read
