"""Memory that comes and goes by virtio-mem while a VM is there: asking a guest to take it or to give it back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from aiovmm.config import HotplugMethod, VMConfig
from aiovmm.devices.virtio.mem import BLOCK_SIZE, MemDevice
from aiovmm.errors import HotplugError, HotplugTimeout, StateError, UsageError
from aiovmm.lifecycle import EventKind, VMState
from aiovmm.runtime.awake import awake_timeout
from aiovmm.runtime.dataclass import replace
from aiovmm.runtime.timeouts import check_seconds

if TYPE_CHECKING:
    from aiovmm.machine.ending import Ending
    from aiovmm.machine.parts import MachineParts, PluggedDevice
    from aiovmm.memory import GuestMemory

__all__ = ["MemoryHotplug", "plug_mem", "power_on"]


def plug_mem(parts: MachineParts) -> None:
    """The device that has such memory, if it comes by virtio-mem: one, or one for each zone."""
    config = parts.config
    if config.memory.hotplug_method is not HotplugMethod.VIRTIO_MEM:
        return
    if config.memory.hotplug_size:
        parts.plug(MemDevice(config.memory.hotplug_size, config.memory.hotplugged_size), parts.free_id("mem"))
    homes = {zone: node.guest_numa_id for node in config.numa for zone in node.memory_zones}
    for zone in config.memory_zones:
        if zone.hotplug_size:
            device = MemDevice(zone.hotplug_size, zone.hotplugged_size, _node(config, homes.get(zone.id)), zone.id)
            parts.plug(device, parts.free_id(f"mem-{zone.id}"))


def _node(config: VMConfig, node: int | None) -> int | None:
    """Where a zone is that is in no node: see NumaConfig."""
    if node is not None or not config.numa:
        return node
    return min(node.guest_numa_id for node in config.numa if node.device_id is None)


def power_on(plugged: list[PluggedDevice], memory: GuestMemory, starts: Sequence[int]) -> None:
    """Give each device its region of a new machine's memory."""
    devices = [p.device for p in plugged if isinstance(p.device, MemDevice)]
    for device, start in zip(devices, starts, strict=True):
        device.power_on(next(region for region in memory.regions if region.gpa == start))


class MemoryHotplug:
    """Of one VM. `configured` is told what its configuration is from now on."""

    def __init__(self, name: str, ending: Ending, configured: Callable[[VMConfig], None]) -> None:
        self._name = name
        self._ending = ending
        self._configured = configured

    async def resize(self, size: int, timeout: float | None, zone: str | None = None) -> None:
        """Until the guest has `size` bytes in all, or in a zone. See VM.resize."""
        check_seconds(timeout, "resize(timeout=)")
        async with self._ending.transition:
            parts, device = self._there(zone)
            wanted = _wanted(*_bounds(parts.config, zone), size)
            device.request(wanted)
            parts.config = _with(parts.config, zone, wanted)
            self._configured(parts.config)
        if self._ending.life.state is VMState.RUNNING and timeout != 0:
            await self._until_served(device, size, wanted, timeout)
        self._ending.journal.emit(EventKind.RESIZED, f"{size} bytes of memory")

    def _there(self, zone: str | None) -> tuple[MachineParts, MemDevice]:
        parts = self._ending.power.parts
        if parts is None or self._ending.life.state is VMState.STOPPED:
            raise StateError(f"VM {self._name!r} is not there, or has ended: it is resized inside `async with`")
        devices = {p.device.zone: p.device for p in parts.plugged if isinstance(p.device, MemDevice)}
        if not devices:
            raise UsageError(f"VM {self._name!r} has no memory to come: say MemoryConfig(hotplug_size=...)")
        if zone not in list(devices):  # whatever it is that is asked for
            there = ", ".join(name for name in devices if name is not None)
            which = f"zone {zone!r} does not grow" if zone is not None else "memory grows by zones"
            raise UsageError(f"resize(zone={zone!r}): {which}; those that do: {there or 'none'}")
        return parts, devices[zone]

    async def _until_served(self, device: MemDevice, size: int, wanted: int, timeout: float | None) -> None:
        stopped = asyncio.ensure_future(self._ending.stopped.wait())
        try:
            async with awake_timeout(timeout):
                while device.blocks.plugged != wanted or device.blocks.requested != wanted:
                    if device.blocks.requested != wanted:
                        reason = f"it was asked for {device.blocks.requested} bytes of hotplugged memory meanwhile, not {wanted}"
                        raise HotplugError(f"resizing memory to {size} bytes", reason)
                    step = asyncio.ensure_future(device.moved.wait())
                    await asyncio.wait([step, stopped], return_when=asyncio.FIRST_COMPLETED)
                    step.cancel()
                    if stopped.done():
                        raise StateError(f"VM {self._name!r} has ended before it had {size} bytes of memory")
        except TimeoutError:
            blocks = device.blocks
            raise HotplugTimeout(
                f"resizing memory to {size} bytes",
                f"after {timeout:g} s the guest has {blocks.plugged} bytes of hotplugged memory, not {blocks.requested}",
                "it stays asked: it takes more when its driver is there, and gives back what it can spare",
            ) from None
        finally:
            stopped.cancel()


def _bounds(config: VMConfig, zone: str | None) -> tuple[int, int]:
    """(least, most) bytes."""
    if zone is None:
        return config.ram_size, config.ram_size + config.memory.hotplug_size
    found = next(z for z in config.memory_zones if z.id == zone)
    return found.size, found.size + found.hotplug_size


def _with(config: VMConfig, zone: str | None, wanted: int) -> VMConfig:
    if zone is None:
        return config.with_changes({"memory": replace(config.memory, hotplugged_size=wanted)})
    zones = tuple(replace(z, hotplugged_size=wanted) if z.id == zone else z for z in config.memory_zones)
    return config.with_changes({"memory_zones": zones})


def _wanted(least: int, most: int, size: int) -> int:
    """Hotplugged bytes. Raises UsageError for a total that cannot be."""
    if not isinstance(size, int) or not least <= size <= most or (size - least) % BLOCK_SIZE:
        raise UsageError(f"memory={size!r}: it can have {least} to {most} bytes, in blocks of {BLOCK_SIZE}")
    return size - least
