"""Processors that come and go while a VM is there: one after the other, so that those there are always the first ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from aiovmm.config import VMConfig
from aiovmm.errors import StateError, UsageError
from aiovmm.lifecycle import EventKind, VMState
from aiovmm.machine.hotplug.units import Units
from aiovmm.runtime.dataclass import replace
from aiovmm.runtime.timeouts import check_seconds

if TYPE_CHECKING:
    from aiovmm.machine.assembly import Machine
    from aiovmm.machine.ending import Ending

__all__ = ["ProcessorHotplug"]


class ProcessorHotplug:
    """Of one VM. `configured` is told what its configuration is from now on."""

    def __init__(self, name: str, ending: Ending, configured: Callable[[VMConfig], None]) -> None:
        self._name = name
        self._ending = ending
        self._configured = configured
        self._busy = asyncio.Lock()
        self._machine: Machine | None = None
        self._units: Units | None = None

    async def resize(self, count: int, timeout: float | None) -> None:
        """Until the guest has `count` processors. See VM.resize."""
        check_seconds(timeout, "resize(timeout=)")
        end = None if timeout is None else monotonic() + timeout
        async with self._busy:
            machine, units = self._there(count)
            while len(machine.vcpus) < count:
                await self._bring(machine, units, _left(end))
            while len(machine.vcpus) > count:
                await units.take(len(machine.vcpus) - 1, _left(end))
        self._ending.journal.emit(EventKind.RESIZED, f"{count} processors")

    def _there(self, count: int) -> tuple[Machine, Units]:
        """Raises StateError, UsageError."""
        machine, most = self._ending.power.machine, self._ending.power.parts
        if machine is None or most is None or self._ending.life.state is not VMState.RUNNING:
            raise StateError(
                f"VM {self._name!r} is {self._ending.life.state.value}: processors come and go while it runs"
            )
        registers, cpus = machine.board.processors, most.config.cpus
        if registers is None:
            hint = "say CpusConfig(max=), on x86-64"
            raise UsageError(f"VM {self._name!r} has {cpus.boot} processors, and none comes or goes: {hint}")
        assert cpus.max is not None
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= cpus.max:
            raise UsageError(f"cpus={count!r}: it can have 1 to {cpus.max} processors")
        if machine is not self._machine or self._units is None:
            away = partial(self._take_away, machine)
            self._machine = machine
            self._units = Units(self._ending, registers, machine.board.processors_changed, away, "processor")
            machine.at_close(self._machine_goes)
        return machine, self._units

    async def _bring(self, machine: Machine, units: Units, timeout: float | None) -> None:
        async with self._ending.transition:
            if machine is not self._ending.power.machine or self._ending.life.state is not VMState.RUNNING:
                raise StateError(f"VM {self._name!r} does not run any more as it did")
            index = len(machine.vcpus)
            await machine.add_processor(index)
        try:
            await units.bring(index, timeout)
        except BaseException:
            if machine is self._ending.power.machine and len(machine.vcpus) > index:
                await machine.remove_processor(index)
            raise
        self._keep(index + 1)

    async def _take_away(self, machine: Machine, index: int) -> None:
        await machine.remove_processor(index)
        self._keep(index)

    def _keep(self, count: int) -> None:
        parts = self._ending.power.parts
        if parts is not None:
            cpus = replace(parts.config.cpus, boot=count)
            parts.config = parts.config.with_changes({"cpus": cpus})
            self._configured(parts.config)

    async def _machine_goes(self) -> None:
        if self._units is not None:
            self._units.machine_goes()
        self._machine = self._units = None


def _left(end: float | None) -> float | None:
    return None if end is None else max(end - monotonic(), 0.0)
