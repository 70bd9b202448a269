"""The virtio-pci transport, modern only (VIRTIO 1.2, 4.1): one function, one 64-bit BAR, MSI-X, and INTx while that is off.

BAR 0 (64 KiB), every structure in pages of its own:

    0x0000 common    registers of `CommonConfig`; reads never wait, a status write may (see below)
    0x1000 ISR       read to clear; while it is not 0 and MSI-X is off the interrupt pin is asserted
    0x2000 device    the device's own configuration
    0x3000 notify    `Doorbells`, 4 bytes a queue
    0x7000 PBA       MSI-X pending bits
    0x8000 table     MSI-X vectors; reads never wait

DRIVER_OK activates the back end and a status of 0 resets it. Both are asynchronous and strictly one after the other; the
guest's status write completes only when they are done, so a driver that has reset the device knows that nothing of it
touches memory any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from aiovmm.errors import UsageError
from aiovmm.memory import AddressSpace
from aiovmm.pci.bar import Bar
from aiovmm.pci.common_config import CommonConfig
from aiovmm.pci.config_space import COMMAND, Identity, overlaps
from aiovmm.pci.config_window import ConfigWindow
from aiovmm.pci.doorbells import Doorbells
from aiovmm.pci.function import BarRegion, PciFunction, together
from aiovmm.pci.intx import InterruptPin
from aiovmm.pci.msix import MAX_VECTORS, MsixTable
from aiovmm.pci.msix_lines import MsixVectors
from aiovmm.pci.services import PciServices, Place
from aiovmm.pci.virtio_bar import (
    BAR,
    MAX_QUEUES,
    NOTIFY,
    CommonRegisters,
    DeviceRegisters,
    VirtioStructures,
    laid_out,
)
from aiovmm.pci.virtio_irq import ISR_CONFIG, ISR_QUEUE, IsrStatus, VirtioInterrupt
from aiovmm.runtime.dataclass import dataclass, field
from aiovmm.virtqueue.backend import ServedElsewhere, VirtioBackend, is_served_elsewhere
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.features import ACCESS_PLATFORM, RING_FEATURES
from aiovmm.virtqueue.runner import DeviceRunner
from aiovmm.virtqueue.status import Activate, Effect, Negotiation, ResetDevice

if TYPE_CHECKING:
    from aiovmm.runtime.plain import State
    from aiovmm.virtqueue.config import QueuePosition

__all__ = ["ServedElsewhere", "VirtioBackend", "VirtioPci"]

VENDOR_ID = 0x1AF4
DEVICE_ID_BASE = 0x1040
_CLASSES = {1: 0x020000, 2: 0x018000, 3: 0x078000, 19: 0x078000, 26: 0x018000}  # by device type; others unassigned
_CLASS_OTHER = 0xFF0000
_VECTOR = attrgetter("vector")

OnError = Callable[[VirtioDevice, Exception], None]


@dataclass()
class Standstill:
    """Of a function that is suspended: where its queues stand (None: it is not suspended, or has no driver), the device's
    own state, and whether it comes from elsewhere and has not gone on yet."""

    positions: list[QueuePosition] | None = None
    device: State = field(default_factory=dict)
    loaded: bool = False


class VirtioPci(PciFunction):
    """`device` on PCI. `backend` serves its queues (default: the device's own if it is ServedElsewhere, else a DeviceRunner on
    `memory`, default the machine's); it calls `needs_reset()` when it breaks. `on_error(device, exc)` hears what broke it.
    Raises UsageError."""

    def __init__(
        self,
        device: VirtioDevice,
        services: PciServices,
        *,
        backend: VirtioBackend | None = None,
        memory: AddressSpace | None = None,
        features: int = RING_FEATURES,
        on_error: OnError | None = None,
        place: Place | None = None,
    ) -> None:
        """`place`: where it will be plugged in."""
        queues = len(device.queue_sizes)
        if queues > MAX_QUEUES or queues + 1 > MAX_VECTORS:
            raise UsageError(f"{device.name}: {queues} queues are more than virtio-pci has room for")
        self.device = device
        if is_served_elsewhere(device):
            features &= device.ring_features
        self.negotiation = Negotiation(
            device.features | features, device.queue_sizes, partial(_accepts, device, features)
        )
        self._services = services
        self._on_error = on_error
        self._common = common = CommonConfig(self.negotiation, queues + 1)
        place = Place() if place is None else place
        layout = laid_out(_identity(device.device_id), queues)
        config = layout.config.copy()
        self._pin = InterruptPin(config, services, place)
        self._vectors = MsixVectors(MsixTable(queues + 1), services, device.name, place, self._broken)
        self._isr = IsrStatus(partial(_show, self._pin, self._vectors.table))
        self._config_irq = VirtioInterrupt(self._vectors, self._isr, ISR_CONFIG, lambda: common.config_vector)
        self._transition = asyncio.Lock()
        self._active = False
        self._pending = 0  # transitions that have not ended
        self._standstill = Standstill()
        self.backend: VirtioBackend = backend or self._make_backend(services.memory if memory is None else memory)
        apart = device.own_kicks or not isinstance(self.backend, DeviceRunner)
        self._doorbells = Doorbells(services, queues, apart=apart)
        super().__init__(device.name, config, (BAR,), (), place, laid_out=True)
        self._msix_control = layout.msix + 2
        self.interrupt_gsi = self._pin.gsi
        self._window = ConfigWindow(config, layout.window)
        self.live_registers, self.still_registers = (self._window.data,), layout.still
        device._notify_config = self.config_changed

    @property
    def regions(self) -> Sequence[BarRegion]:
        """What stands in the BAR, made when something is first to be there: who has no driver needs none."""
        if not self._regions:
            structures = VirtioStructures(
                CommonRegisters(self._common, self._write_common),
                self._isr,
                DeviceRegisters(self.device, self._broken),
                self._doorbells,
                self._vectors,
            )
            self._regions = tuple(structures.regions(self.name))
        return self._regions

    def _make_backend(self, memory: AddressSpace) -> VirtioBackend:
        device, common, on_error = self.device, self._common, self._on_error
        create_task = partial(self._services.create_task, name=device.name)
        if is_served_elsewhere(self.device):
            broken = partial(_break, device, common, self._config_irq, on_error)
            return self.device.make_backend(memory, broken, create_task)
        return DeviceRunner(device, memory, create_task, needs_reset=common.needs_reset, on_error=on_error)

    # -- what the device and its back end say ----------------------------------------------------------------------------

    def config_changed(self) -> None:
        """The device's configuration changed: a new generation, and an interrupt if the driver is there."""
        if self._common.config_changed():
            self._config_irq.pulse()

    async def close(self) -> None:
        """Stop the back end and give fds and lines back. The device itself is its owner's to close. What has pointed back here
        does no more, so that all of it goes with the last who knows it."""
        self.device._notify_config = None
        await self._reset()
        self._pin.close()
        await self._doorbells.close()
        lines = self._vectors.close()
        self._regions = ()
        if lines is not None:
            await lines

    # -- configuration space ---------------------------------------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> bytes:
        """Configuration space; reading the PCI_CFG data reads the BAR."""
        self._window.before_read(offset, size, self._read_bar)
        return self.config.read(offset, size)

    def write_config(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """Configuration space; MSI-X control and the PCI_CFG data take effect."""
        super().write_config(offset, data)
        lines = None
        if overlaps(offset, len(data), self._msix_control, 2):
            control = self.config.get(self._msix_control, 2)
            effects = self._vectors.table.set_control(enabled=bool(control & 0x8000), masked=bool(control & 0x4000))
            lines = self._vectors.apply(effects)
            self._show_pending()
        if overlaps(offset, len(data), COMMAND, 2):
            self._pin.command_written()
        return together(lines, self._window.after_write(offset, len(data), self._write_bar))

    def bar_moved(self, bar: Bar, address: int | None) -> Awaitable[None] | None:
        """The doorbells follow."""
        return self._doorbells.moved(None if address is None else address + NOTIFY)

    def bar_displaced(self, bar: Bar) -> Awaitable[None] | None:
        """The doorbells go."""
        return self._doorbells.displaced()

    def _show_pending(self) -> None:
        _show(self._pin, self._vectors.table, self._isr.bits)

    # -- status ----------------------------------------------------------------------------------------------------------

    def _write_common(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """A write to the common configuration; the result is done when the device has started or stopped."""
        result = None
        for effect in self._common.write(offset, data):
            result = self._carry_out(effect)
        return result

    def _carry_out(self, effect: Effect) -> Awaitable[None] | None:
        if isinstance(effect, Activate):
            return self._submit(self._activate(effect.features))
        if isinstance(effect, ResetDevice):
            if self._active or self._pending:
                return self._submit(self._let_go())
            self._reset_registers()  # as every driver does first
        return None

    def _submit(self, transition: Coroutine[Any, Any, None]) -> Awaitable[None]:
        """Whoever waits may be cancelled (a vCPU that stops); the transition goes on."""
        task = self._services.create_task(transition, name=f"{self.name} transition")
        self._pending += 1
        task.add_done_callback(self._submitted)
        return asyncio.shield(task)

    def _submitted(self, task: asyncio.Task[None]) -> None:
        self._pending -= 1

    async def _activate(self, features: int) -> None:
        async with self._transition:
            if await self._go_live(self.backend.activate, features):
                self._tell_driver(there=True)

    async def _go_live(
        self, activate: Callable[..., Coroutine[Any, Any, None]], features: int, *positions: Any
    ) -> bool:
        queues = self.negotiation.queues
        irqs = [VirtioInterrupt(self._vectors, self._isr, ISR_QUEUE, partial(_VECTOR, q)) for q in queues]
        self._active = True
        try:
            kicks = self._doorbells.open()
            await activate(queues, features, kicks, irqs, self._config_irq, *positions)
        except Exception as exc:  # the border: whatever goes wrong, this device is broken and nobody else
            self._broken(exc)
            return False
        return True

    async def _let_go(self) -> None:
        await self._reset()
        self._tell_driver(there=False)

    def _tell_driver(self, *, there: bool) -> None:
        if self.device._notify_driver is not None:
            self.device._notify_driver(there)

    async def _reset(self) -> None:
        async with self._transition:
            try:
                await self.backend.reset()
            except Exception as exc:
                self._broken(exc)
            self._active = False
            self._standstill.positions = None
            self._reset_registers()

    def _reset_registers(self) -> None:
        self._isr.clear()
        self._common.reset_done()

    def _broken(self, exc: Exception) -> None:
        """`exc` broke the device."""
        _break(self.device, self._common, self._config_irq, self._on_error, exc)

    # -- for a snapshot: the guest stands still ----------------------------------------------------------------------------

    @property
    def suspended_last(self) -> bool:
        """The device's."""
        return self.device.suspended_last

    @property
    def why_not_saved(self) -> str | None:
        """The device's reason, or that another process has it."""
        if not isinstance(self.backend, DeviceRunner):
            return "another process serves it, whose state cannot be had"
        return self.device.why_not_saved

    async def suspend(self) -> None:
        """Stop the back end, with its requests ended or put back, and ask the device for its state. What is wired to the host, as
        doorbells are, stays: who kicks is heard when it goes on."""
        from aiovmm.pci.virtio_saved import suspend

        async with self._transition:
            await suspend(self)

    def save(self) -> State:
        """Registers, where the queues stand, and the device's own state."""
        from aiovmm.pci.virtio_saved import save

        return save(self)

    async def load(self, state: State) -> None:
        """Into a function that no driver has touched. Its device goes live with `unsuspend`, if it was."""
        from aiovmm.pci.virtio_saved import load

        await load(self, state)

    async def unsuspend(self) -> None:
        """The device goes on, unless it is broken; one that is still being suspended as soon as it is, and then nobody waits."""
        if self._standstill.loaded:  # nothing else is under way, and who gives up has no use for the machine
            await self._go_on()
            return
        under_way = self._pending or self._transition.locked()
        if self._standstill.positions is None and not self.device.suspending and not under_way:
            return  # it was not suspended, or has no driver
        going = self._submit(self._go_on())
        if self._standstill.positions is not None or not self._active:
            await going

    async def _go_on(self) -> None:
        from aiovmm.pci.virtio_saved import go_on

        async with self._transition:
            await go_on(self)

    # -- BAR 0 -----------------------------------------------------------------------------------------------------------

    def _region(self, bar: int, offset: int, size: int) -> BarRegion | None:
        return next(
            (r for r in self.regions if r.bar == bar and r.offset <= offset and offset + size <= r.offset + r.size),
            None,
        )

    def _read_bar(self, bar: int, offset: int, size: int) -> bytes:
        region = self._region(bar, offset, size)
        data = b"\xff" * size if region is None else region.device.read(offset - region.offset, size)
        assert isinstance(data, bytes), "registers of ours answer at once"
        if len(data) != size:  # a device of the embedder's: more would be in the place of other registers
            raise ValueError(f"{self.name}: a read of {size} bytes gave {len(data)}")
        return data

    def _write_bar(self, bar: int, offset: int, data: bytes) -> Awaitable[None] | None:
        region = self._region(bar, offset, len(data))
        return None if region is None else region.device.write(offset - region.offset, data)


def _show(pin: InterruptPin, table: MsixTable, isr: int) -> None:
    """The pin follows the ISR while MSI-X is off."""
    pin.set_pending(bool(isr) and not table.enabled)


def _break(
    device: VirtioDevice, common: CommonConfig, config_irq: VirtioInterrupt, on_error: OnError | None, exc: Exception
) -> None:
    """`exc` broke the device: the driver and `on_error` are told."""
    if common.needs_reset():
        config_irq.pulse()
    if on_error is not None:
        on_error(device, exc)


def _accepts(device: VirtioDevice, offered: int, features: int) -> bool:
    """6.2: a driver that does not take ACCESS_PLATFORM would give addresses that the translation does not know."""
    return not offered & ~features & ACCESS_PLATFORM and device.accepts(features)


@cache
def _identity(device_type: int) -> Identity:
    """4.1.2.1: device id 0x1040 + type, revision 1 or higher."""
    device = DEVICE_ID_BASE + device_type
    class_code = _CLASSES.get(device_type, _CLASS_OTHER)
    return Identity(VENDOR_ID, device, class_code, revision=1, subsystem_vendor=VENDOR_ID, subsystem=device)
