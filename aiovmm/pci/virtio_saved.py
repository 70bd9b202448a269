"""A virtio function in a snapshot: how it stops, what there is of it, and how it goes on. Imported when somebody asks for
that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.errors import SnapshotError
from aiovmm.pci.saved import device_state, load_device
from aiovmm.pci.virtio_irq import ISR_CONFIG, ISR_QUEUE
from aiovmm.runtime.plain import Fields, State
from aiovmm.virtqueue.config import QueueConfig, QueuePosition
from aiovmm.virtqueue.runner import DeviceRunner
from aiovmm.virtqueue.status import Status

if TYPE_CHECKING:
    from aiovmm.pci.virtio import VirtioPci

__all__ = ["go_on", "load", "save", "suspend"]


async def suspend(function: VirtioPci) -> None:
    """Stop its device. Raises SnapshotError; may be cancelled."""
    runner = _runner(function)
    if function._active:
        await runner.suspend()
        function._standstill.positions = runner.positions()
    function._standstill.device = await device_state(function.device)


def save(function: VirtioPci) -> State:
    """All of it, while it is suspended."""
    standstill = function._standstill
    return {
        "config": function.config.save(),
        "msix": function._vectors.save(),
        "isr": function._isr.bits,
        "common": function._common.save(),
        "queues": [position.save() for position in standstill.positions or ()],
        "device": standstill.device,
    }


async def load(function: VirtioPci, state: State) -> None:
    """Into one that no driver has touched; it is suspended then. Raises SnapshotError."""
    fields = Fields(state, function.name)
    config, msix, common, device = (fields.state(name) for name in ("config", "msix", "common", "device"))
    isr, saved = fields.number("isr", 0, ISR_QUEUE | ISR_CONFIG), list(fields.several("queues"))
    fields.end()
    function.config.load(config)
    function._common.load(common)
    positions = _positions(saved, function.negotiation.queues)
    await load_device(function.device, device)
    if function.negotiation.status & Status.DRIVER_OK:
        function._active = function._standstill.loaded = True
        function._standstill.positions = positions
        _runner(function).take_over()
    if (lines := function._vectors.load(msix)) is not None:
        await lines
    function._isr.bits = isr
    function._pin.command_written()
    function._isr_changed()


def _positions(saved: list[Fields], queues: list[QueueConfig]) -> list[QueuePosition]:
    """Of each queue; none of a device that was not live. Raises SnapshotError."""
    if saved and len(saved) != len(queues):
        raise SnapshotError(f"{len(saved)} queues were live, of {len(queues)}")
    return [QueuePosition.read(one, q.size if q.ready else 0) for one, q in zip(saved, queues, strict=False)]


async def go_on(function: VirtioPci) -> None:
    """Have its device live again where it stood, unless it is broken, or was not suspended."""
    runner, standstill = function.backend, function._standstill
    if not isinstance(runner, DeviceRunner) or (standstill.positions is None and not function.device.suspending):
        return
    await runner.stopped()
    if not function._active or function.negotiation.status & Status.NEEDS_RESET:
        return
    positions, standstill.positions = standstill.positions or runner.positions(), None
    live = positions and await function._go_live(runner.resume, function.negotiation.features, positions)
    if live and standstill.loaded:
        function._tell_driver(there=True)
    standstill.loaded = False


def _runner(function: VirtioPci) -> DeviceRunner:
    assert isinstance(function.backend, DeviceRunner), "others have a reason why they are not saved"
    return function.backend
