"""Virtqueues: how a driver in the guest and a device here pass buffers to each other (VIRTIO 1.2 §2).

`VirtioDevice` is what a device author subclasses; `Queue` and `Chain` are what its `run` gets. `Negotiation` and
`DeviceRunner` are for transports. `aiovmm.virtqueue.driver` is the guest's side, for tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from aiovmm.virtqueue.batch import Batch
    from aiovmm.virtqueue.chain import Chain
    from aiovmm.virtqueue.config import NO_VECTOR, QueueConfig, QueueCounters, QueuePosition
    from aiovmm.virtqueue.device import VirtioDevice
    from aiovmm.virtqueue.queue import Queue
    from aiovmm.virtqueue.runner import DeviceRunner
    from aiovmm.virtqueue.serving import Next
    from aiovmm.virtqueue.status import Negotiation, Status

__all__ = [
    "NO_VECTOR",
    "Batch",
    "Chain",
    "DeviceRunner",
    "Negotiation",
    "Next",
    "Queue",
    "QueueConfig",
    "QueueCounters",
    "QueuePosition",
    "Status",
    "VirtioDevice",
]

__getattr__ = lazy_names(
    __name__,
    {
        "aiovmm.virtqueue.batch": "Batch",
        "aiovmm.virtqueue.chain": "Chain",
        "aiovmm.virtqueue.config": "NO_VECTOR QueueConfig QueueCounters QueuePosition",
        "aiovmm.virtqueue.device": "VirtioDevice",
        "aiovmm.virtqueue.queue": "Queue",
        "aiovmm.virtqueue.runner": "DeviceRunner",
        "aiovmm.virtqueue.serving": "Next",
        "aiovmm.virtqueue.status": "Negotiation Status",
    },
)
