"""Memory that comes and goes by virtio-mem while a VM is there: asking a guest to take it or to give it back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiovmm.config import HotplugMethod, MemoryConfig, VMConfig
from aiovmm.devices.virtio.mem import BLOCK_SIZE, MemDevice
from aiovmm.errors import HotplugError, HotplugTimeout, StateError, UsageError
from aiovmm.lifecycle import EventKind, VMState
from aiovmm.runtime.dataclass import replace
from aiovmm.runtime.timeouts import check_seconds

if TYPE_CHECKING:
    from aiovmm.machine.ending import Ending
    from aiovmm.machine.parts import MachineParts, PluggedDevice
    from aiovmm.memory import GuestMemory

__all__ = ["MemoryHotplug", "plug_mem", "power_on"]


def plug_mem(parts: MachineParts) -> None:
    """The device that has such memory, if it comes by virtio-mem."""
    memory = parts.config.memory
    if memory.hotplug_method is HotplugMethod.VIRTIO_MEM:
        parts.plug(MemDevice(memory.hotplug_size, memory.hotplugged_size), "mem")


def power_on(plugged: list[PluggedDevice], memory: GuestMemory, start: int) -> None:
    """Give the device its region of a new machine's memory."""
    for p in plugged:
        if isinstance(p.device, MemDevice):
            p.device.power_on(next(region for region in memory.regions if region.gpa == start))


class MemoryHotplug:
    """Of one VM. `configured` is told what its configuration is from now on."""

    def __init__(self, name: str, ending: Ending, configured: Callable[[VMConfig], None]) -> None:
        self._name = name
        self._ending = ending
        self._configured = configured

    async def resize(self, size: int, timeout: float | None) -> None:
        """Until the guest has `size` bytes in all. See VM.resize."""
        check_seconds(timeout, "resize(timeout=)")
        async with self._ending.transition:
            parts, device = self._there()
            memory = parts.config.memory
            wanted = _wanted(memory, parts.config.ram_size, size)
            device.request(wanted)
            parts.config = parts.config.with_changes({"memory": replace(memory, hotplugged_size=wanted)})
            self._configured(parts.config)
        if self._ending.life.state is VMState.RUNNING and timeout != 0:
            await self._until_served(device, size, wanted, timeout)
        self._ending.journal.emit(EventKind.RESIZED, f"{size} bytes of memory")

    def _there(self) -> tuple[MachineParts, MemDevice]:
        parts = self._ending.power.parts
        if parts is None or self._ending.life.state is VMState.STOPPED:
            raise StateError(f"VM {self._name!r} is not there, or has ended: it is resized inside `async with`")
        device = next((p.device for p in parts.plugged if isinstance(p.device, MemDevice)), None)
        if device is None:
            raise UsageError(f"VM {self._name!r} has no memory to come: say MemoryConfig(hotplug_size=...)")
        return parts, device

    async def _until_served(self, device: MemDevice, size: int, wanted: int, timeout: float | None) -> None:
        stopped = asyncio.ensure_future(self._ending.stopped.wait())
        try:
            async with asyncio.timeout(timeout):
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


def _wanted(memory: MemoryConfig, least: int, size: int) -> int:
    """Hotplugged bytes. Raises UsageError for a total that cannot be."""
    most = least + memory.hotplug_size
    if not isinstance(size, int) or not least <= size <= most or (size - least) % BLOCK_SIZE:
        raise UsageError(f"memory={size!r}: it can have {least} to {most} bytes, in blocks of {BLOCK_SIZE}")
    return size - least
