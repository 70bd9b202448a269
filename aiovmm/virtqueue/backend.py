"""Who serves a device's queues between DRIVER_OK and reset, as a transport sees it: a coroutine here, or another process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeGuard

from aiovmm.irq import IrqLine
from aiovmm.memory import AddressSpace
from aiovmm.virtqueue.config import QueueConfig
from aiovmm.virtqueue.runner import CreateTask

__all__ = ["ServedElsewhere", "VirtioBackend", "is_served_elsewhere"]


class VirtioBackend(Protocol):
    """What serves the queues between DRIVER_OK and reset: a `DeviceRunner` here, or somebody else (vhost, vhost-user)."""

    async def activate(
        self,
        configs: Sequence[QueueConfig],
        features: int,
        kick_fds: Sequence[int],
        queue_irqs: Sequence[IrqLine],
        config_irq: IrqLine,
    ) -> None:
        """Go live. Lists run over all queues, those that are not `ready` included; kick eventfds are non-blocking, stay open
        until `reset` has returned, and are each queue's own unless this is a DeviceRunner. The lines are `VirtioInterrupt`s;
        their `fd` can be handed over instead."""

    async def reset(self) -> None:
        """Stop; return when nothing touches guest memory or the eventfds any more. Idempotent, never raises."""


class ServedElsewhere(Protocol):
    """A device whose queues are not served by its `run` here. `ring_features`: what of the ring features its server can do."""

    ring_features: int

    def make_backend(
        self, memory: AddressSpace, broken: Callable[[Exception], None], create_task: CreateTask
    ) -> VirtioBackend:
        """Its server on one machine's memory; `broken(exc)` puts the device into NEEDS_RESET. Raises UsageError."""


def is_served_elsewhere(device: object) -> TypeGuard[ServedElsewhere]:
    """Whether it is one. To ask `isinstance` takes as long as to make the rest of a device's registers."""
    return hasattr(device, "make_backend")
