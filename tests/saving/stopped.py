"""A device in a Harness that is stopped for a moment, or goes on as another object."""

from __future__ import annotations

import asyncio

from aiovmm.pci.saved import device_state, load_device
from aiovmm.runtime.plain import Fields
from aiovmm.virtqueue.config import QueuePosition
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.harness import Harness
from aiovmm.virtqueue.runner import DeviceRunner
from tests.saving.text import through_text

__all__ = ["move", "pause"]


async def pause(h: Harness) -> None:
    """Suspend it, and let it go on."""
    await h.runner.suspend()
    await _resume(h, h.runner.positions())


async def move(h: Harness, device: VirtioDevice) -> None:
    """Suspend it and end it; `device` goes on in its place, with what its state tells."""
    old = h.device
    await h.runner.suspend()
    saved = [through_text(position.save()) for position in h.runner.positions()]
    state = through_text(await device_state(old))
    positions = [QueuePosition.read(Fields(one, "queue"), 1 << 15) for one in saved]
    await h.runner.reset()
    await old.close()
    h.device = device
    device._notify_config, device._notify_error = h._config_changed, h.reported.append
    await device.open()
    assert device.accepts(h.negotiation.features)
    await load_device(device, state)
    h.runner = DeviceRunner(
        device,
        h.device_memory,
        lambda body: asyncio.get_running_loop().create_task(body, name=device.name),
        needs_reset=h.negotiation.needs_reset,
        on_error=h._failed,
    )
    h.runner.take_over()
    await _resume(h, positions)


async def _resume(h: Harness, positions: list[QueuePosition]) -> None:
    n = h.negotiation
    await h.runner.resume(n.queues, n.features, h._fds, [q.irq for q in h.queues], h.config_irq, positions)
