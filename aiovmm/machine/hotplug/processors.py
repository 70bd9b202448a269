"""Processors that come and go while a VM runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aiovmm.config import VMConfig
from aiovmm.errors import UsageError
from aiovmm.lifecycle import EventKind
from aiovmm.machine.hotplug.one_by_one import OneByOne
from aiovmm.runtime.awake import awake_budget
from aiovmm.runtime.dataclass import replace
from aiovmm.runtime.timeouts import check_seconds

if TYPE_CHECKING:
    from aiovmm.machine.assembly import Machine

__all__ = ["ProcessorHotplug"]


class ProcessorHotplug(OneByOne):
    """Each is a vCPU with its thread."""

    what = "processor"

    async def resize(self, count: int, timeout: float | None) -> None:
        """Until the guest has `count` processors. See VM.resize."""
        check_seconds(timeout, "resize(timeout=)")
        with awake_budget(timeout) as left:
            await self._resize(count, left)

    async def _resize(self, count: int, left: Callable[[], float | None]) -> None:
        async with self._busy:
            machine = await self._found()
            board, cpus = machine.board, machine.parts.config.cpus
            if board.processors is None or cpus.max is None:
                hint = "say CpusConfig(max=), on x86-64"
                raise UsageError(f"VM {self._name!r} has {cpus.boot} processors, and none comes or goes: {hint}")
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= cpus.max:
                raise UsageError(f"cpus={count!r}: it can have 1 to {cpus.max} processors")
            self._follow(machine, board.processors, board.processors_changed)
            await self._until(machine, count, left)
        self._ending.journal.emit(EventKind.RESIZED, f"{count} processors")

    def _count(self, machine: Machine) -> int:
        return len(machine.vcpus)

    async def _add(self, machine: Machine, unit: int) -> None:
        await machine.processors.add(unit)

    async def _remove(self, machine: Machine, unit: int) -> None:
        await machine.processors.remove(unit)

    def _changed(self, config: VMConfig, count: int) -> VMConfig:
        return config.with_changes({"cpus": replace(config.cpus, boot=count)})
