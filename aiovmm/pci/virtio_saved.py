"""A virtio function in a snapshot: how it stops, what there is of it, and how it goes on. Imported when somebody asks for
that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.errors import SnapshotError
from aiovmm.pci.saved import device_state, load_device
from aiovmm.pci.virtio_irq import ISR_CONFIG, ISR_QUEUE
from aiovmm.runtime.plain import Fields, State, once
from aiovmm.virtqueue.config import QueuePosition
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
    config, msix, common, device, isr = once(state, _read, function.name)
    function.config.load(config)
    function._common.load(common)
    sizes = tuple(queue.size if queue.ready else 0 for queue in function.negotiation.queues)
    positions = once(state, _positions, function.name, sizes)
    await load_device(function.device, device)
    if function.negotiation.status & Status.DRIVER_OK:
        if not function.negotiation.status & Status.NEEDS_RESET:
            _refuse_lost(positions)
        function._active = function._standstill.loaded = True
        function._standstill.positions = list(positions)
        _runner(function).take_over()
    if (lines := function._vectors.load(msix)) is not None:
        await lines
    function._isr.bits = isr
    function._pin.command_written()
    function._show_pending()


def _read(state: State, name: str) -> tuple[State, State, State, State, int]:
    """Its parts, but for the queues', and its interrupt status."""
    fields = Fields(state, name)
    config, msix, common, device = (fields.state(part) for part in ("config", "msix", "common", "device"))
    isr = fields.number("isr", 0, ISR_QUEUE | ISR_CONFIG)
    fields.list("queues")
    fields.end()
    return config, msix, common, device, isr


def _positions(state: State, name: str, sizes: tuple[int, ...]) -> tuple[QueuePosition, ...]:
    """Of each queue, which has so many entries, if it is enabled; none of a device that was not live. Raises SnapshotError."""
    saved = list(Fields(state, name).several("queues"))
    if saved and len(saved) != len(sizes):
        raise SnapshotError(f"{len(saved)} queues were live, of {len(sizes)}")
    return tuple(QueuePosition.read(one, size) for one, size in zip(saved, sizes, strict=False))


def _refuse_lost(positions: tuple[QueuePosition, ...]) -> None:
    """Only a device that is broken stops with chains that nobody returns: see DeviceRunner.suspend. Raises SnapshotError."""
    for number, position in enumerate(positions):
        if lost := position.in_flight - len(position.again):
            raise SnapshotError(
                f"queues[{number}]: {lost} chains were taken that do not come again, by a device that works"
            )


async def go_on(function: VirtioPci) -> None:
    """Have its device live again where it stood, unless it is broken, or was not suspended."""
    runner, standstill = function.backend, function._standstill
    if not isinstance(runner, DeviceRunner) or (standstill.positions is None and not function.device.suspending):
        return
    await runner.stopped()
    loaded, standstill.loaded = standstill.loaded, False
    if not function._active or function.negotiation.status & Status.NEEDS_RESET:
        return
    positions, standstill.positions = standstill.positions or runner.positions(), None
    live = positions and await function._go_live(runner.resume, function.negotiation.features, positions)
    if live and loaded:
        function._tell_driver(there=True)


def _runner(function: VirtioPci) -> DeviceRunner:
    assert isinstance(function.backend, DeviceRunner), "others have a reason why they are not saved"
    return function.backend
