"""Units that come and go while a VM runs, one after the other: those that are there are always the first ones."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from aiovmm.config import VMConfig
from aiovmm.errors import StateError
from aiovmm.lifecycle import VMState
from aiovmm.machine.hotplug.units import Units
from aiovmm.runtime.tasks import finish

if TYPE_CHECKING:
    from aiovmm.devices.hotplug.units import UnitRegisters
    from aiovmm.machine.assembly import Machine
    from aiovmm.machine.ending import Ending

__all__ = ["OneByOne"]


class OneByOne(ABC):
    """Of one VM. `configured` is told what its configuration is from now on. Each machine that is built has registers, and a
    board that has the guest look at them: `_follow` them before `_until`."""

    what: str
    """What one is called."""

    def __init__(self, name: str, ending: Ending, configured: Callable[[VMConfig], None]) -> None:
        self._name = name
        self._ending = ending
        self._configured = configured
        self._busy = asyncio.Lock()
        self._machine: Machine | None = None
        self._units: Units | None = None

    @abstractmethod
    def _count(self, machine: Machine) -> int:
        """How many are there."""

    @abstractmethod
    async def _add(self, machine: Machine, unit: int) -> None:
        """One more, before the guest is told."""

    @abstractmethod
    async def _remove(self, machine: Machine, unit: int) -> None:
        """The guest has let go of the last, or has not taken it."""

    @abstractmethod
    def _changed(self, config: VMConfig, count: int) -> VMConfig:
        """The configuration of a VM with so many."""

    async def _found(self) -> Machine:
        """The one that runs; of a guest that is just being reset the next. Raises StateError."""
        async with self._ending.transition:
            return self._running()

    def _running(self) -> Machine:
        machine = self._ending.power.machine
        if machine is None or self._ending.life.state is not VMState.RUNNING:
            raise StateError(f"VM {self._name!r} is {self._ending.life.state.value}: it is resized while it runs")
        return machine

    def _follow(self, machine: Machine, registers: UnitRegisters, tell: Callable[[], None]) -> None:
        if machine is not self._machine or self._units is None:
            away: Callable[[int], Awaitable[None]] = partial(self._take_away, machine)
            self._machine, self._units = machine, Units(self._ending, registers, tell, away, self.what)
            machine.at_close(self._machine_goes)

    async def _until(self, machine: Machine, count: int, left: Callable[[], float | None]) -> None:
        """The guest has `count`, or what HotplugError, StateError says, before no seconds are `left`."""
        assert self._units is not None
        units = self._units
        await units.settled()
        if (
            0 < self._count(machine) <= count
        ):  # a guest that was asked for the last, in vain, is not to let go of it now
            units.keep(self._count(machine) - 1)
        while (now := self._count(machine)) != count:
            if now < count:
                await self._bring(machine, units, now, left)
            else:
                await units.take(now - 1, left())

    async def _bring(self, machine: Machine, units: Units, unit: int, left: Callable[[], float | None]) -> None:
        async with self._ending.transition:
            if machine is not self._running():
                raise StateError(f"VM {self._name!r} was reset meanwhile")
            await self._add(machine, unit)
        try:
            await units.bring(unit, left())
        except BaseException:
            await finish(self._take_back(machine, unit))
            raise
        self._keep(unit + 1)

    async def _take_back(self, machine: Machine, unit: int) -> None:
        async with self._ending.transition:  # nobody may be at work on what there is
            if machine is self._ending.power.machine and self._count(machine) > unit:
                await self._remove(machine, unit)

    async def _take_away(self, machine: Machine, unit: int) -> None:
        await self._remove(machine, unit)
        self._keep(unit)

    def _keep(self, count: int) -> None:
        parts = self._ending.power.parts
        if parts is not None:
            parts.config = self._changed(parts.config, count)
            self._configured(parts.config)

    async def _machine_goes(self) -> None:
        """Nothing is at work any more on what it has, which a guest may let go of and be reset in the same moment."""
        if self._units is not None:
            self._units.machine_goes()
            await self._units.settled()
        self._machine = self._units = None
