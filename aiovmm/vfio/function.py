"""A device of the host as a function on the guest's PCI bus, for the life of one machine.

The guest reaches the device's registers directly: BARs are memory slots of KVM's that follow where the guest puts them. What
cannot be mapped (the pages of the MSI-X structures, BARs below a page) is trapped. Messages (MSI, MSI-X) go from the device's
kernel side to the guest by eventfds alone; the event loop sees neither. INTx goes through it (see `intx`), and is on while
no messages are: a function has one kind of interrupt at a time (PCI Local Bus 3.0, 6.8.2), and so has VFIO.

`start` readies the device, `close` quiets it: no bus mastering, no interrupts, then a reset, so that the next machine (after
a reboot of the guest) and the host find it as after power-on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from aiovmm.errors import HostError, UsageError
from aiovmm.pci.bar import Bar
from aiovmm.pci.config_space import COMMAND, COMMAND_INTX_OFF, COMMAND_MASTER, COMMAND_MEM, overlaps
from aiovmm.pci.function import BarRegion, PciFunction, together
from aiovmm.pci.services import Place
from aiovmm.runtime.tasks import in_thread
from aiovmm.vfio.abi import Irq, Region
from aiovmm.vfio.calls import DeviceCalls
from aiovmm.vfio.device import HostDevice, MappedArea
from aiovmm.vfio.interrupts import MsiInterrupts, MsixInterrupts
from aiovmm.vfio.intx import IntxInterrupt
from aiovmm.vfio.layout import Piece, lay_out
from aiovmm.vfio.notices import Notices
from aiovmm.vfio.services import MemorySlot, VfioServices
from aiovmm.vfio.virtual_config import VirtualConfig

__all__ = ["VfioFunction"]

_MSIX_ON = 0x8000
_INTERRUPT_LINE = 0x3C
_FROM_GUEST = COMMAND_MASTER | 0x0140  # parity response and SERR# too; decoding stays on, or mapped BARs would fault

OnError = Callable[[str, Exception], None]


class VfioFunction(PciFunction):
    """`device` is open, and is to be at `place`. `on_error(name, exc)` hears what the host refuses while the guest runs. Raises
    HostError, UsageError."""

    def __init__(
        self, device: HostDevice, services: VfioServices, on_error: OnError, place: Place | None = None
    ) -> None:
        self.device = device
        self._services = services
        self._on_error = on_error
        self._slots: dict[int, list[MemorySlot]] = {}  # by BAR; touched off the loop only
        self._placed: dict[int, int | None] = {}  # where they are, or are about to be
        virtual = VirtualConfig(device.config(), [region.size for region in device.regions[:6]], intx=_has_pin(device))
        if virtual.msi is None and virtual.msix is None and not virtual.intx:
            raise UsageError(f"{device.name} has no interrupt that can be passed through: no MSI-X, no MSI, no INTx")
        self._virtual = virtual
        self._calls = DeviceCalls(device, services, self._failed)
        place = Place() if place is None else place
        self._intx = self._msi = self._msix = None
        if virtual.msi is not None:
            self._msi = MsiInterrupts(virtual.msi, self._calls, services, device.name, place)
        if virtual.msix is not None:
            self._msix = MsixInterrupts(virtual.msix.vectors, self._calls, services, device.name, place)
        self._notices = Notices(device, self._calls, on_error)
        self._areas: dict[int, list[MappedArea]] = {}
        regions = [region for bar in virtual.bars for region in self._lay_out(bar)]
        super().__init__(device.name, virtual.space, virtual.bars, regions, place)
        self.live_registers = virtual.watched
        if virtual.intx:
            self._intx = IntxInterrupt(self._calls, services, place)
            self.interrupt_gsi = self._intx.gsi
            self.config.put(_INTERRUPT_LINE, 1, self._intx.gsi)  # firmware leaves it there
        self._reset_lock = asyncio.Lock()
        self._closed = False

    async def start(self) -> None:
        """Reset the device and let its BARs answer. Raises HostError."""
        await in_thread(f"{self.device.label} reset", self.device.reset)
        refused: list[Exception] = []
        self._calls.failed = refused.append
        self._notices.open()
        self._push_command()
        if self._intx is not None:
            self._intx.turn_on()
        await self._calls.settle()
        self._calls.failed = self._failed
        if refused:
            raise refused[0]

    # -- configuration space

    def read_config(self, offset: int, size: int) -> bytes | Awaitable[bytes]:
        """Ours, and the device's own where it is shown."""
        if not any(overlaps(offset, size, start, length) for start, length in self.live_registers):
            return self.config.read(offset, size)
        theirs = self._calls.read(Region.CONFIG, offset, size)
        return self._overlay(offset, theirs) if isinstance(theirs, bytes) else self._overlay_later(offset, theirs)

    async def _overlay_later(self, offset: int, theirs: Awaitable[bytes]) -> bytes:
        return self._overlay(offset, await theirs)

    def _overlay(self, offset: int, theirs: bytes) -> bytes:
        return self._virtual.overlay(offset, self.config.read(offset, len(theirs)), theirs)

    def write_config(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """Ours and the device's own. The result is done when the device is."""
        writes, reset = self._virtual.write(offset, data)
        for write in writes:
            self._calls.write_config(write.offset, write.data)
        lines = None
        try:
            lines = self._follow(offset, len(data))
        except HostError as exc:
            self._failed(exc)
        if not reset:
            return together(lines, self._calls.asked())
        return asyncio.shield(self._services.create_task(self._reset(), name=f"{self.name} reset"))

    def bar_moved(self, bar: Bar, address: int | None) -> Awaitable[None] | None:
        """Its slots follow."""
        return self._place(bar.index, address)

    def _place(self, index: int, address: int | None) -> Awaitable[None] | None:
        if self._placed.get(index) == address:
            return None
        self._placed[index] = address
        refused: list[HostError] = []

        def told(_: BaseException | None) -> None:
            for error in refused:
                self._on_error(self.name, error)

        return self._services.off_loop(partial(self._map_slots, index, address, refused), told)

    def _map_slots(self, index: int, address: int | None, refused: list[HostError]) -> None:
        """In the machine's thread: KVM waits for all vCPUs."""
        for slot in self._slots.pop(index, []):
            slot.close()
        if address is None:
            return
        slots = self._slots.setdefault(index, [])
        try:
            for area in self._areas[index]:
                slots.append(self._services.memory_slot(address + area.offset, area.size, area.mapping))
        except HostError as exc:
            refused.append(exc)

    @property
    def why_not_saved(self) -> str | None:
        """Nobody can ask the hardware."""
        return "it is a device of the host, whose state is in the hardware"

    async def close(self) -> None:
        """Quiet and reset the device. Idempotent. Its owner closes it."""
        if self._closed:
            return
        self._closed = True
        for index in list(self._placed):
            if (pending := self._place(index, None)) is not None:
                await pending
        self._calls.write_config(COMMAND, COMMAND_INTX_OFF.to_bytes(2, "little"))
        for interrupts in (self._notices, self._intx, self._msi, self._msix):
            if interrupts is not None:
                interrupts.close()
        await self._reset()

    # -- what is behind it

    def _follow(self, offset: int, size: int) -> Awaitable[None] | None:
        """Registers of ours in [offset, offset + size) were written: carry out what they say now; the result is done when the
        guest's lines are. Raises HostError."""
        if overlaps(offset, size, COMMAND, 2):
            self._push_command()
        msi, msix = self._virtual.msi, self._virtual.msix
        to_msi = msi is not None and overlaps(offset, size, msi.offset, msi.size)
        to_msix = msix is not None and overlaps(offset, size, msix.offset + 2, 2)
        lines = None
        if not to_msi and not to_msix:
            return None
        if self._intx is not None and self._messages:
            self._intx.turn_off()
        if self._msi is not None and to_msi:
            self._msi.update()
        if self._msix is not None and msix is not None and to_msix:
            lines = self._msix.control(self.config.get(msix.offset + 2, 2))
        if self._intx is not None and not self._messages:
            self._intx.turn_on()
        return lines

    @property
    def _messages(self) -> bool:
        """Whether the guest has MSI or MSI-X on."""
        msi, msix = self._virtual.msi, self._virtual.msix
        return bool(msi is not None and msi.vectors) or bool(
            msix is not None and self.config.get(msix.offset + 2, 2) & _MSIX_ON
        )

    def _push_command(self) -> None:
        """The device decodes memory always; the rest is the guest's."""
        command = self.config.get(COMMAND, 2) & (_FROM_GUEST | COMMAND_INTX_OFF) | COMMAND_MEM
        if self._intx is None:
            command |= COMMAND_INTX_OFF
        self._calls.write_config(COMMAND, command.to_bytes(2, "little"))
        if self._intx is not None:
            self._intx.disable(bool(command & COMMAND_INTX_OFF))

    def _failed(self, error: Exception) -> None:
        self._on_error(self.name, error)

    async def _reset(self) -> None:
        async with self._reset_lock:
            try:
                await self._calls.settle()
                # for 100 ms and more, which doorbells need not wait for
                await in_thread(f"{self.device.label} reset", self.device.reset)
            except HostError as exc:
                self._on_error(self.name, exc)

    def _lay_out(self, bar: Bar) -> list[BarRegion]:
        """Map what can be mapped of a BAR; the regions for the rest."""
        ours = self._structures(bar.index)
        areas = () if bar.index in self.device.trapped_bars else self.device.regions[bar.index].areas
        layout = lay_out(bar.size, areas, [piece for piece, _ in ours])
        self._areas[bar.index] = [self.device.map(bar.index, p.offset, p.size) for p in layout.mapped]
        trapped = [
            BarRegion(
                bar.index,
                p.offset,
                p.size,
                _Window(self._calls, bar.index, p.offset),
                f"{self.device.name} BAR {bar.index}",
            )
            for p in layout.trapped
        ]
        return [*trapped, *(region for _, region in ours)]

    def _structures(self, bar: int) -> list[tuple[Piece, BarRegion]]:
        """MSI-X table and pending bits, where they lie in this BAR."""
        msix, where = self._msix, self._virtual.msix
        if msix is None or where is None:
            return []
        found = []
        (table_bar, table), (pending_bar, pending) = where.table, where.pending
        name = self.device.name
        if table_bar == bar:
            region = BarRegion(bar, table, where.table_size, msix.table, f"{name} MSI-X table", msix.table.fast)
            found.append((Piece(table, where.table_size), region))
        if pending_bar == bar:
            region = BarRegion(bar, pending, where.pending_size, msix.pending, f"{name} MSI-X pending bits")
            found.append((Piece(pending, where.pending_size), region))
        return found


def _has_pin(device: HostDevice) -> bool:
    """Whether the host's kernel gives INTx: there is a pin, wired, and not known to be broken."""
    info = device.irqs.get(Irq.INTX)
    return info is not None and info.count > 0


class _Window:
    """Registers that are reached through VFIO, an access each: at `offset` of BAR `bar`."""

    def __init__(self, calls: DeviceCalls, bar: int, offset: int) -> None:
        self._calls = calls
        self._bar = bar
        self._offset = offset

    def read(self, offset: int, size: int) -> bytes | Awaitable[bytes]:
        """The device's register."""
        return self._calls.read(self._bar, self._offset + offset, size)

    def write(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """The device's register."""
        self._calls.write(self._bar, self._offset + offset, data)
        return self._calls.asked()
