"""Devices that are plugged in, and out, while a VM is there.

    add:     opened ──► in its slot ──► the guest told ──► it has looked ──► DEVICE_ADDED
                                           └── not in time: taken out again, closed
    remove:  the guest asked ──► it has ejected (_EJ0) ──► out of its slot ──► closed ──► DEVICE_REMOVED
                                           └── not in time: it stays, and asked for; a guest that ejects later is heeded;
                                               by force: out of its slot, the guest told, closed

Before the guest runs it need not be told, and a guest that is reset finds what is there: what it was to look at, and no more what
it was asked for. Whoever waits is answered then. What is plugged in is also in the VM's configuration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from aiovmm.config import DiskConfig, PlacedConfig, VMConfig
from aiovmm.errors import ConfigError, HotplugTimeout, StateError, UsageError
from aiovmm.lifecycle import EventKind, VMState
from aiovmm.machine.device_memory import map_later, unmap
from aiovmm.machine.devices import join_console, look_at_images, make_device
from aiovmm.machine.hotplug.configured import check_comes_later, free_id, pinned, with_device, without_device
from aiovmm.machine.hotplug.waiting import wait_for_guest
from aiovmm.machine.iommu import refuse_remote
from aiovmm.machine.parts import MachineParts, PluggedDevice
from aiovmm.runtime.dataclass import replace
from aiovmm.runtime.tasks import finish
from aiovmm.runtime.timeouts import check_seconds

if TYPE_CHECKING:
    from aiovmm.machine.assembly import Machine
    from aiovmm.machine.ending import Ending
    from aiovmm.pci.root import PciAddress
    from aiovmm.virtqueue.device import VirtioDevice

__all__ = ["DeviceHotplug"]

_IOMMU = 23  # VIRTIO 1.2 §5


class DeviceHotplug:
    """Of one VM. `configured` is told what its configuration is from now on."""

    def __init__(self, name: str, ending: Ending, configured: Callable[[VMConfig], None]) -> None:
        self._name = name
        self._ending = ending
        self._power = ending.power
        self._configured = configured
        self._machine: Machine | None = None  # whose slots and end are followed
        self._removals: dict[str, asyncio.Future[None]] = {}  # asked for, by id
        self._leaving: dict[str, asyncio.Future[None]] = {}  # on their way out
        self._looks: set[asyncio.Future[None]] = set()
        self._coming: set[str] = set()  # ids of those that are opened while the guest may be paused or reset
        self._untold: set[str] = set()  # ids of those that nobody has been told of yet

    # -- adding

    async def add(self, placed: PlacedConfig, timeout: float | None) -> str:
        """See VM.add."""
        check_seconds(timeout, "add(timeout=)")
        check_comes_later(placed)
        async with self._ending.transition:
            parts, machine = self._there()
            self._follow(machine)
            placed = replace(placed, id=free_id(placed, self._taken(parts)))
            config = self._with(parts, machine, placed)
            refuse_remote(config)
            device = await self._made(parts, machine, placed)
            if not device._awaits_peer:
                plugged, look = await self._plug_in(parts, machine, placed, config, device)
        if device._awaits_peer:
            plugged, look = await self._plug_in_later(placed, device)
        if look is not None and timeout != 0:
            await self._until_it_looks(plugged, look, timeout)
        self._untold.discard(plugged.id)
        self._ending.journal.emit(
            EventKind.DEVICE_ADDED, f"in slot {plugged.slot} of segment {plugged.segment}", device=plugged.id
        )
        return plugged.id

    def _taken(self, parts: MachineParts) -> set[str]:
        return self._ids(parts) | parts.config.chosen_ids | self._coming

    def _with(self, parts: MachineParts, machine: Machine, placed: PlacedConfig) -> VMConfig:
        """What the configuration is then. Raises ConfigError."""
        config = with_device(self._pinned(parts, machine), placed)
        if placed.id in self._taken(parts):  # by a device that is in no configuration
            raise ConfigError("device.id", f"{placed.id!r} names two devices")
        return config

    async def _made(self, parts: MachineParts, machine: Machine, placed: PlacedConfig) -> VirtioDevice:
        assert placed.id is not None
        kinds = await look_at_images(self._name, {placed.id: placed} if isinstance(placed, DiskConfig) else {})
        device = make_device(parts, placed, placed.id, kinds)
        _check_fits(machine, placed, device)
        device._account = parts.account
        device._label = f"{self._name}: {placed.id}"
        device._notify_error = partial(self._ending.device_failed, placed.id)
        device._notify_driver = partial(self._ending.device_driven, placed.id)
        return device

    async def _plug_in(
        self, parts: MachineParts, machine: Machine, placed: PlacedConfig, config: VMConfig, device: VirtioDevice
    ) -> tuple[PluggedDevice, asyncio.Future[None] | None]:
        """Open it, and put it in."""
        try:
            await self._opened(device)
            return await self._put_in(parts, machine, placed, config, device)
        except BaseException:
            await finish(device.close())
            raise

    async def _plug_in_later(
        self, placed: PlacedConfig, device: VirtioDevice
    ) -> tuple[PluggedDevice, asyncio.Future[None] | None]:
        """The same once another program lets it be opened: the guest can be paused, saved and reset meanwhile, and its
        configuration may change."""
        assert placed.id is not None
        self._coming.add(placed.id)
        try:
            await self._opened(device)
            async with self._ending.transition:
                parts, machine = self._there()
                self._follow(machine)
                self._coming.discard(placed.id)
                _check_fits(machine, placed, device)
                return await self._put_in(parts, machine, placed, self._with(parts, machine, placed), device)
        except BaseException:
            await finish(device.close())
            raise
        finally:
            self._coming.discard(placed.id)

    async def _put_in(
        self, parts: MachineParts, machine: Machine, placed: PlacedConfig, config: VMConfig, device: VirtioDevice
    ) -> tuple[PluggedDevice, asyncio.Future[None] | None]:
        """In its slot, one of the parts and in the configuration, and what `_tell_of` gives; or nothing of that."""
        assert placed.id is not None
        wanted = PluggedDevice(placed.id, device, placed.pci_segment, placed.iommu, placed.pci_device_id)
        await map_later(machine, wanted)
        address = await self._in_its_slot(machine, wanted)
        plugged = PluggedDevice(wanted.id, device, address.segment, wanted.iommu, address.slot)
        parts.plugged.append(plugged)
        join_console(parts, device)
        self._keep(parts, pinned(config, partial(_slot_of, machine)))
        self._untold.add(plugged.id)
        return plugged, self._tell_of(machine, plugged)

    async def _opened(self, device: VirtioDevice) -> None:
        """It may wait for another program, and whoever ends the guest meanwhile waits for this."""
        opening = asyncio.ensure_future(device.open())
        stopped = asyncio.ensure_future(self._ending.stopped.wait())
        try:
            await asyncio.wait([opening, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not opening.done():
                opening.cancel()
                await asyncio.wait([opening])
        if opening.cancelled():
            raise StateError(f"adding {device.label}: the guest has ended")
        opening.result()

    async def _in_its_slot(self, machine: Machine, wanted: PluggedDevice) -> PciAddress:
        try:
            return machine.plug(wanted)
        except BaseException:
            await finish(unmap(machine, wanted))
            raise

    def _tell_of(self, machine: Machine, plugged: PluggedDevice) -> asyncio.Future[None] | None:
        """Done when the guest has looked at it; None: it does so when it starts, or goes on."""
        slots, address = machine.board.slots, machine.address(plugged.id)
        if slots is None or self._ending.life.state is VMState.CREATED:
            return None
        look: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        machine.pci.root.when_looked_at(address, partial(_done, look))
        slots.added(address.segment, address.slot)
        machine.board.slots_changed()
        if self._ending.life.state is VMState.PAUSED:
            return None
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)
        return look

    async def _until_it_looks(self, plugged: PluggedDevice, look: asyncio.Future[None], timeout: float | None) -> None:
        """Or take the device back."""
        what, hint = (
            f"adding {plugged.id!r}",
            "it was taken out again; does the guest run, and has its kernel ACPI hotplug?",
        )
        try:
            await wait_for_guest(self._ending, look, timeout, what, "the guest has not looked at it", hint)
        except BaseException:
            self._looks.discard(look)
            await finish(self._take_back(plugged))
            raise

    async def _take_back(self, plugged: PluggedDevice) -> None:
        async with self._ending.transition:
            if self._power.machine is not None and self._is_in(plugged) and plugged.id not in self._leaving:
                await self._take_out(self._power.machine, plugged, tell=True)

    # -- removing

    async def remove(self, id_: str, timeout: float | None, *, force: bool) -> None:
        """See VM.remove."""
        check_seconds(timeout, "remove(timeout=)")
        async with self._ending.transition:
            parts, machine = self._there()
            plugged = self._find(parts, id_)
            self._follow(machine)
            if id_ not in self._leaving:
                self._keep(parts, self._pinned(parts, machine))
                if self._ending.life.state is VMState.CREATED or (force and self._ending.life.state is VMState.PAUSED):
                    await finish(self._take_out(machine, plugged, tell=True))
                    return
                self._ask(machine, plugged)
            removal = self._removals.setdefault(id_, asyncio.get_running_loop().create_future())
        what, hint = f"removing {id_!r}", "it stays in until the guest does; force=True takes it then all the same"
        try:
            await wait_for_guest(self._ending, removal, timeout, what, "the guest has not let go of it", hint)
        except HotplugTimeout:
            if not force:
                raise
            await finish(self._take_back(plugged))

    def _find(self, parts: MachineParts, id_: str) -> PluggedDevice:
        found = next((p for p in parts.plugged if p.id == id_), None)
        hosts = parts.passthrough.places if parts.passthrough is not None else ()
        if any(place.id == id_ for place in hosts):
            raise UsageError(f"{id_!r} is a device of the host, which stays as long as the VM is there")
        if found is None:
            known = ", ".join(sorted(self._ids(parts)))
            there = f"there are: {known}" if known else "there are none"
            raise KeyError(f"VM {self._name!r} has no device {id_!r}; {there}")
        if found.device.device_id == _IOMMU:
            raise UsageError("the IOMMU stands between other devices and memory, and stays")
        return found

    def _ask(self, machine: Machine, plugged: PluggedDevice) -> None:
        if self._ending.life.state is VMState.PAUSED:
            raise StateError(
                f"VM {self._name!r} is paused, and cannot let go of {plugged.id!r}: resume() it, or force=True"
            )
        assert machine.board.slots is not None
        address = machine.address(plugged.id)
        machine.board.slots.ask(address.segment, address.slot)
        machine.board.slots_changed()

    def _ejected(self, machine: Machine, segment: int, slot: int) -> Awaitable[None] | None:
        """The guest has let go; its instruction waits until nothing of the device touches memory any more."""
        for plugged in self._power.plugged:
            if plugged.id in self._removals and plugged.id not in self._leaving:
                address = machine.address(plugged.id)
                if (address.segment, address.slot) == (segment, slot):
                    return self._let_go(machine, plugged)
        return None

    def _let_go(self, machine: Machine, plugged: PluggedDevice) -> Awaitable[None]:
        out: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self._power.tasks.create(
            finish(self._take_out(machine, plugged, out=out)), f"{self._name}: eject {plugged.id}"
        )
        self._leaving[plugged.id] = task
        return out

    async def _take_out(
        self, machine: Machine, plugged: PluggedDevice, *, tell: bool = False, out: asyncio.Future[None] | None = None
    ) -> None:
        """Out of its slot, then closed, whatever fails on the way. `tell`: the guest was not asked. `out` is done in between."""
        address, parts = machine.address(plugged.id), self._power.parts
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leaving.setdefault(plugged.id, left)
        try:
            await machine.unplug(plugged.id)
            await unmap(machine, plugged)
        finally:
            if out is not None:
                _done(out)
            if machine.board.slots is not None:
                self._slot_is_empty(machine, address, tell=tell)
            if parts is not None:
                parts.plugged = [p for p in parts.plugged if p is not plugged]
                self._keep(parts, without_device(parts.config, plugged.id))
            try:
                await self._put_away(plugged)
            finally:
                _done(left)

    def _slot_is_empty(self, machine: Machine, address: PciAddress, *, tell: bool) -> None:
        assert machine.board.slots is not None
        if tell and self._ending.life.state is not VMState.CREATED:
            machine.board.slots.gone(address.segment, address.slot)
            machine.board.slots_changed()
        else:
            machine.board.slots.forget(address.segment, address.slot)

    async def _put_away(self, plugged: PluggedDevice) -> None:
        device: VirtioDevice = plugged.device
        removal = self._removals.pop(plugged.id, None)
        if self._power.parts is not None:
            self._power.parts.console.disconnect(device)
        try:
            device.guest_ended(f"{plugged.id!r} was removed from VM {self._name!r}")
            await device.close()
        finally:
            self._leaving.pop(plugged.id, None)
            if removal is not None:
                _done(removal)
            if plugged.id in self._untold:
                self._untold.discard(plugged.id)
            else:
                self._ending.journal.emit(EventKind.DEVICE_REMOVED, device=plugged.id)

    # -- the machine, which a reset replaces

    def _follow(self, machine: Machine) -> None:
        """Raises UsageError where a guest that runs cannot be told."""
        if machine.board.slots is None:
            if self._ending.life.state is VMState.CREATED:
                return
            raise UsageError(
                "devices come and go while a guest runs on x86-64 only: the device tree of arm64 guests tells of none that "
                "come later; add them before start()"
            )
        if machine is not self._machine:
            self._machine = machine
            machine.board.slots.on_eject = partial(self._ejected, machine)
            machine.at_close(self._machine_goes)

    async def _machine_goes(self) -> None:
        """A guest that is reset finds what is there at its start: what was asked for is not. Whoever waits need not."""
        machine, self._machine = self._machine, None
        assert machine is not None
        if self._leaving:
            await asyncio.wait(self._leaving.values())
        for plugged in [p for p in self._power.plugged if p.id in self._removals]:
            await self._take_out(machine, plugged)
        for look in list(self._looks):
            _done(look)

    def _there(self) -> tuple[MachineParts, Machine]:
        parts, machine = self._power.parts, self._power.machine
        if parts is None or machine is None or self._ending.life.state is VMState.STOPPED:
            status = self._ending.life.status
            ended = f" has ended ({status.reason.value}: {status.detail})" if status else " is not there"
            raise StateError(f"VM {self._name!r}{ended}: devices come and go inside `async with`")
        return parts, machine

    # -- the configuration

    def _pinned(self, parts: MachineParts, machine: Machine) -> VMConfig:
        return pinned(parts.config, partial(_slot_of, machine))

    def _keep(self, parts: MachineParts, config: VMConfig) -> None:
        parts.config = config
        self._configured(config)

    def _ids(self, parts: MachineParts) -> set[str]:
        hosts = parts.passthrough.places if parts.passthrough is not None else ()
        return {p.id for p in parts.plugged} | {place.id for place in hosts}

    def _is_in(self, plugged: PluggedDevice) -> bool:
        return any(p is plugged for p in self._power.plugged)


def _check_fits(machine: Machine, placed: PlacedConfig, device: VirtioDevice) -> None:
    """Raises ConfigError for what the machine would have had to be made for."""
    if device.shares_memory and not all(region.shared for region in machine.memory.regions if region.ram):
        hint = "make the VM with MemoryConfig(shared=True)"
        raise ConfigError(
            "memory.shared", f"is off, and {placed.id!r} shares the guest's memory with another process", hint
        )
    if placed.iommu and (machine.iommu is None or not machine.iommu.takes_later(placed.pci_segment)):
        hint = "put it into a segment of PlatformConfig(iommu_segments=)"
        raise ConfigError(f"{placed.id}.iommu", "a guest learns at its start what is behind the IOMMU", hint)


def _slot_of(machine: Machine, id_: str) -> int | None:
    try:
        return machine.address(id_).slot
    except KeyError:  # a device of the host's
        return None


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
