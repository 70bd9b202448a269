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

from aiovmm.config import DeviceConfig, PlacedConfig, VMConfig
from aiovmm.errors import ConfigError, HotplugTimeout, StateError, UsageError
from aiovmm.lifecycle import EventKind, VMState
from aiovmm.machine.hotplug.configured import check_comes_later, free_id, pinned, with_device, without_device
from aiovmm.machine.hotplug.pluggable import Pluggable, find, ids, made
from aiovmm.machine.hotplug.waiting import wait_for_guest
from aiovmm.machine.iommu import refuse_remote
from aiovmm.machine.parts import MachineParts
from aiovmm.pci.root import PciAddress
from aiovmm.runtime.dataclass import replace
from aiovmm.runtime.tasks import finish
from aiovmm.runtime.timeouts import check_seconds

if TYPE_CHECKING:
    from aiovmm.machine.assembly import Machine
    from aiovmm.machine.ending import Ending

__all__ = ["DeviceHotplug"]

_Look = asyncio.Future[None]
"""Done when the guest has looked at a device."""


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
        self._of_host: set[str] = set()  # of those, devices of the host
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
            await self._until_gone(placed)
            placed = replace(placed, id=free_id(placed, self._taken(parts)))
            refuse_remote(self._with(parts, machine, placed))
            device = await made(parts, placed, self._ending)
            device.check_fits(machine)
            if not device.awaits_peer:
                address, look = await self._plug_in(parts, machine, placed, device)
        if device.awaits_peer:
            address, look = await self._plug_in_later(placed, device)
        if look is not None and timeout != 0:
            await self._until_it_looks(device, look, timeout)
        self._untold.discard(device.id)
        self._ending.journal.emit(
            EventKind.DEVICE_ADDED, f"in slot {address.slot} of segment {address.segment}", device=device.id
        )
        return device.id

    async def _until_gone(self, placed: PlacedConfig) -> None:
        """What is on its way out may be what is to come again: of this id, or of the host, which has not got it back yet."""
        of_host = isinstance(placed, DeviceConfig)
        there = [left for id_, left in self._leaving.items() if id_ == placed.id or (of_host and id_ in self._of_host)]
        if there:
            await asyncio.wait(there)

    def _taken(self, parts: MachineParts) -> set[str]:
        return ids(parts) | parts.config.chosen_ids | self._coming | set(self._leaving)

    def _with(self, parts: MachineParts, machine: Machine, placed: PlacedConfig) -> VMConfig:
        """What the configuration is then. Raises ConfigError."""
        config = with_device(self._pinned(parts, machine), placed)
        if placed.id in self._taken(parts):  # by a device that is in no configuration
            raise ConfigError("device.id", f"{placed.id!r} names two devices")
        return config

    async def _plug_in(
        self, parts: MachineParts, machine: Machine, placed: PlacedConfig, device: Pluggable
    ) -> tuple[PciAddress, _Look | None]:
        """Open it, and put it in."""
        try:
            await self._opened(device)
            return await self._put_in(parts, machine, placed, device)
        except BaseException:
            await finish(device.close())
            raise

    async def _plug_in_later(self, placed: PlacedConfig, device: Pluggable) -> tuple[PciAddress, _Look | None]:
        """The same once another program lets it be opened: the guest can be paused, saved and reset meanwhile, and its
        configuration may change."""
        self._coming.add(device.id)
        try:
            await self._opened(device)
            async with self._ending.transition:
                parts, machine = self._there()
                self._follow(machine)
                self._coming.discard(device.id)
                device.check_fits(machine)
                self._with(parts, machine, placed)
                return await self._put_in(parts, machine, placed, device)
        except BaseException:
            await finish(device.close())
            raise
        finally:
            self._coming.discard(device.id)

    async def _put_in(
        self, parts: MachineParts, machine: Machine, placed: PlacedConfig, device: Pluggable
    ) -> tuple[PciAddress, _Look | None]:
        """In its slot, one of the parts and in the configuration: where, and what `_tell_of` gives; or nothing of that."""
        await device.put_in(parts, machine)
        self._untold.add(device.id)
        look = self._tell_of(machine, device)  # who looks meanwhile is served after what follows
        # of now: others may have gone since it was looked at, though none came
        self._keep(parts, pinned(with_device(parts.config, placed), partial(_slot_of, machine)))
        return machine.devices.address(device.id), look

    async def _opened(self, device: Pluggable) -> None:
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
            raise StateError(f"adding {device.id!r} to VM {self._name!r}: the guest has ended")
        opening.result()

    def _tell_of(self, machine: Machine, device: Pluggable) -> _Look | None:
        """Done when the guest has looked at it; None: it does so when it starts, or goes on."""
        slots, address = machine.board.slots, machine.devices.address(device.id)
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

    async def _until_it_looks(self, device: Pluggable, look: asyncio.Future[None], timeout: float | None) -> None:
        """Or take the device back."""
        what, hint = (
            f"adding {device.id!r}",
            "it was taken out again; does the guest run, and has its kernel ACPI hotplug?",
        )
        try:
            await wait_for_guest(self._ending, look, timeout, what, "the guest has not looked at it", hint)
        except BaseException:
            self._looks.discard(look)
            await finish(self._take_back(device))
            raise

    async def _take_back(self, device: Pluggable) -> None:
        async with self._ending.transition:
            parts, machine = self._power.parts, self._power.machine
            if parts is not None and machine is not None and device.is_in(parts) and device.id not in self._leaving:
                await self._take_out(machine, device, tell=True)
        await self._gone(device.id)

    # -- removing

    async def remove(self, id_: str, timeout: float | None, *, force: bool) -> None:
        """See VM.remove."""
        check_seconds(timeout, "remove(timeout=)")
        async with self._ending.transition:
            parts, machine = self._there()
            device = None if id_ in self._leaving else find(parts, id_)
            self._follow(machine)
            if device is not None:
                self._keep(parts, self._pinned(parts, machine))
                if self._ending.life.state is VMState.CREATED or (force and self._ending.life.state is VMState.PAUSED):
                    await finish(self._take_out(machine, device, tell=True))
                    return
                self._ask(machine, device)
            removal = self._removals.setdefault(id_, asyncio.get_running_loop().create_future())
        what, hint = f"removing {id_!r}", "it stays in until the guest does; force=True takes it then all the same"
        try:
            await wait_for_guest(self._ending, removal, timeout, what, "the guest has not let go of it", hint)
        except HotplugTimeout:
            if id_ in self._leaving:  # but it has
                await self._gone(id_)
            elif force and device is not None:
                await finish(self._take_back(device))
            else:
                raise

    async def _gone(self, id_: str) -> None:
        """Wait for what is on its way out: however long the host takes, it is not the guest that keeps it."""
        if (left := self._leaving.get(id_)) is not None:
            await asyncio.wait([left])

    def _ask(self, machine: Machine, device: Pluggable) -> None:
        if self._ending.life.state is VMState.PAUSED:
            raise StateError(
                f"VM {self._name!r} is paused, and cannot let go of {device.id!r}: resume() it, or force=True"
            )
        assert machine.board.slots is not None
        address = machine.devices.address(device.id)
        machine.board.slots.ask(address.segment, address.slot)
        machine.board.slots_changed()

    def _ejected(self, machine: Machine, segment: int, slot: int) -> Awaitable[None] | None:
        """The guest has let go; its instruction waits until nothing of the device touches memory any more."""
        if machine is not self._machine or self._power.parts is None:  # it goes, and what was asked for with it
            return None
        for id_ in self._removals:
            if id_ not in self._leaving and machine.devices.address(id_) == PciAddress(segment, slot):
                return self._let_go(machine, find(self._power.parts, id_))
        return None

    def _let_go(self, machine: Machine, device: Pluggable) -> Awaitable[None]:
        out: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self._power.tasks.create(
            finish(self._take_out(machine, device, out=out)), f"{self._name}: eject {device.id}"
        )
        self._leaves(device, task)
        return out

    def _leaves(self, device: Pluggable, left: asyncio.Future[None]) -> None:
        self._leaving.setdefault(device.id, left)
        if device.of_host:
            self._of_host.add(device.id)

    async def _take_out(
        self, machine: Machine, device: Pluggable, *, tell: bool = False, out: asyncio.Future[None] | None = None
    ) -> None:
        """Out of its slot, then closed, whatever fails on the way. `tell`: the guest was not asked. `out` is done in between."""
        address, parts = machine.devices.address(device.id), self._power.parts
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leaves(device, left)
        if parts is not None:  # before its slot is free for another, as is what is asked of the slot
            self._keep(parts, without_device(parts.config, device.id))
        if machine.board.slots is not None:
            machine.board.slots.forget(address.segment, address.slot)
        try:
            await device.take_out(machine)
        finally:
            if out is not None:
                _done(out)
            if tell and machine.board.slots is not None and self._ending.life.state is not VMState.CREATED:
                # a guest that has not let go yet would take the next one there for this one
                machine.pci.root.shun(address)
                machine.board.slots.gone(address.segment, address.slot)
                machine.board.slots_changed()
            if parts is not None:
                device.forget(parts)
            try:
                await self._put_away(device)
            finally:
                _done(left)

    async def _put_away(self, device: Pluggable) -> None:
        try:
            await device.close(self._power.parts, f"{device.id!r} was removed from VM {self._name!r}")
        finally:
            self._leaving.pop(device.id, None)
            self._of_host.discard(device.id)
            if (removal := self._removals.pop(device.id, None)) is not None:
                _done(removal)
            if device.id in self._untold:
                self._untold.discard(device.id)
            else:
                self._ending.journal.emit(EventKind.DEVICE_REMOVED, device=device.id)

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
            machine.board.slots.on_left = machine.pci.root.welcome
            machine.at_close(self._machine_goes)

    async def _machine_goes(self) -> None:
        """A guest that is reset finds what is there at its start: what was asked for is not. Whoever waits need not."""
        machine, self._machine = self._machine, None
        assert machine is not None
        if self._leaving:
            await asyncio.wait(self._leaving.values())
        if (parts := self._power.parts) is not None:
            for id_ in list(self._removals):
                await self._take_out(machine, find(parts, id_))
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


def _slot_of(machine: Machine, id_: str) -> int | None:
    try:
        return machine.devices.address(id_).slot
    except KeyError:  # none of its own: pvpanic
        return None


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
