"""Memory that comes and goes in modules while a VM runs, by ACPI."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aiovmm.config import HotplugMethod, MemoryConfig, VMConfig
from aiovmm.errors import UsageError
from aiovmm.lifecycle import EventKind
from aiovmm.machine.hotplug.one_by_one import OneByOne
from aiovmm.machine.hotplug.places import add_memory, modules, place_of
from aiovmm.native import ffi, lib
from aiovmm.runtime.awake import awake_budget
from aiovmm.runtime.dataclass import replace
from aiovmm.runtime.tasks import finish
from aiovmm.runtime.timeouts import check_seconds

if TYPE_CHECKING:
    from aiovmm.machine.assembly import Machine

__all__ = ["ModuleHotplug"]


class ModuleHotplug(OneByOne):
    """Each is a region of guest memory, and a slot of KVM's."""

    what = "memory module"

    async def resize(self, size: int, timeout: float | None) -> None:
        """Until the guest has `size` bytes in all. See VM.resize."""
        check_seconds(timeout, "resize(timeout=)")
        with awake_budget(timeout) as left:
            await self._resize(size, left)

    async def _resize(self, size: int, left: Callable[[], float | None]) -> None:
        async with self._busy:
            machine = await self._found()
            board, config = machine.board, machine.parts.config
            if board.modules is None or config.memory.hotplug_method is not HotplugMethod.ACPI:
                hint = "say MemoryConfig(hotplug_size=), on arm64 with hotplug_method=HotplugMethod.VIRTIO_MEM"
                raise UsageError(f"VM {self._name!r} has no memory to come: {hint}")
            if any(plugged.device.shares_memory for plugged in machine.parts.plugged):
                hint = "HotplugMethod.VIRTIO_MEM goes with them"
                raise UsageError(f"vhost-user devices of VM {self._name!r} would not see memory that comes: {hint}")
            count = _wanted(config.memory, config.ram_size, size)
            self._follow(machine, board.modules, board.modules_changed)
            await self._until(machine, count, left)
        self._ending.journal.emit(EventKind.RESIZED, f"{size} bytes of memory")

    def _count(self, machine: Machine) -> int:
        start, size = place_of(machine.parts.config.memory, machine.board.device_memory_start)
        return sum(region.ram and start <= region.gpa < start + size for region in machine.memory.regions)

    async def _add(self, machine: Machine, unit: int) -> None:
        config = machine.parts.config
        place = modules(config.memory, machine.board.device_memory_start)[unit]
        if not machine.memory.bring_back(place[0]):
            add_memory(machine.memory, config.memory, [place])
        region = next(region for region in machine.memory.regions if region.gpa == place[0])
        try:
            await self._tell_kvm(machine)
            await machine.devices.memory_came(region)
        except BaseException:
            await self._remove(machine, unit)
            raise

    async def _remove(self, machine: Machine, unit: int) -> None:
        gpa, _ = modules(machine.parts.config.memory, machine.board.device_memory_start)[unit]
        region = next(region for region in machine.memory.regions if region.gpa == gpa)
        machine.memory.put_aside(region)
        await self._tell_kvm(machine)
        await machine.devices.memory_gone(region)
        span = ffi.new("struct avmm_span[]", [(region.host, region.size)])
        await finish(
            machine.worker.submit(lambda: lib.avmm_mem_give_back(span, 1))
        )  # what is refused goes with the machine

    async def _tell_kvm(self, machine: Machine) -> None:
        """A slot more, or less, for which KVM waits until all vCPUs have left the guest."""
        await machine.worker.submit(lambda: machine.kvm_vm.set_memory(machine.memory))

    def _changed(self, config: VMConfig, count: int) -> VMConfig:
        there = sum(size for _, size in modules(config.memory, 0)[:count])
        return config.with_changes({"memory": replace(config.memory, hotplugged_size=there)})


def _wanted(memory: MemoryConfig, least: int, size: int) -> int:
    """How many modules. Raises UsageError for a total that cannot be."""
    sizes = [size for _, size in modules(memory, 0)]
    totals = [least + sum(sizes[:count]) for count in range(len(sizes) + 1)]
    if size not in totals:
        raise UsageError(
            f"memory={size!r}: it can have {least} to {totals[-1]} bytes, in modules of {memory.module_size}"
        )
    return totals.index(size)
