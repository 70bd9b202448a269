"""The machine of one VM from the first power-on to the last: what stays is in the parts, and a reset makes the rest anew."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from aiovmm.config import ConsoleMode, VMConfig
from aiovmm.console import Console
from aiovmm.machine.owner import MachineOwner
from aiovmm.machine.watch import PanicWatch
from aiovmm.runtime.admission import admitted
from aiovmm.runtime.event import Event
from aiovmm.runtime.lazy import imported
from aiovmm.runtime.tasks import TaskScope, in_thread
from aiovmm.runtime.undoing import Undoing

if TYPE_CHECKING:  # see `_examine`
    from aiovmm.boot import KernelImage
    from aiovmm.devices.virtio.blk.image import DiskImage
    from aiovmm.machine.assembly import Machine, Opening
    from aiovmm.machine.own import OwnDevices
    from aiovmm.machine.parts import MachineParts, PluggedDevice
    from aiovmm.machine.restored import Restored

__all__ = ["SHORTEST_LIFE", "Power", "descriptors", "pause_before_life"]

SHORTEST_LIFE = 0.05
"""Seconds from one reset to the next: a guest that does nothing but reset itself must not keep the event loop busy."""

_OF_MACHINES = ("aiovmm.machine.assembly", "aiovmm.machine.devices", "aiovmm.machine.parts")

LIFE_TO_RESET = 3
"""Nor the host: it lives for so many times as long as its resets take, with much memory or many vCPUs, or waits for that."""

_OF_A_MACHINE, _OF_A_DEVICE = 16, 4  # descriptors besides those of vCPUs and queues


class Power:
    """See the module. `machine` is None before it is built, after `aclose`, and for a moment of each reset."""

    def __init__(self, task_failed: Callable[[str, BaseException], None]) -> None:
        self.parts: MachineParts | None = None
        self.restored: Restored | None = None  # what the first power-on goes on from, if not from a kernel
        self.machine: Machine | None = None
        self.tasks = TaskScope(task_failed)
        self.images: Mapping[str, Callable[[], DiskImage]] = {}  # see MachineParts
        self._own: OwnDevices | None = None  # taken
        self._since = 0.0
        self.began = self._ended = 0.0  # seconds of the monotonic clock; 0: not yet
        self.power_ons = 0
        self.debug_output: Callable[[bytes], None] | None = None  # see MachineParts
        self._cost = 0.0  # seconds that the last reset took
        self._button_pressed = False  # while there was no machine

    async def build(
        self,
        owner: MachineOwner,
        config: VMConfig,
        serial: Console,
        console: Console,
        panic: PanicWatch,
        own: OwnDevices | None,
    ) -> None:
        """In its turn: parts, then a machine that is ready to start. On failure `aclose` releases what was acquired."""
        async with admitted():
            if ConsoleMode.FILE in (config.serial.mode, config.console.mode, config.debug_console.mode):
                from aiovmm.config.outputs import refuse_inputs_as_outputs

                refuse_inputs_as_outputs(config)
            kernel = await self._kernel(config)
            from aiovmm.machine.devices import look_at_images, plug_configured
            from aiovmm.machine.parts import MachineParts, open_parts

            if own is not None:
                own.take(config.name)
                self._own = own
            outputs = panic.over(serial.feed, "serial"), panic.over(console.feed, "console")
            if config.pvpanic is not None:  # who prints a panic need not have had one
                outputs = serial.feed, console.feed
            self.parts = MachineParts(config, kernel, serial, console, *outputs, owner=owner)
            self.parts.debug_output = self.debug_output
            self.parts.images = self.images
            self.parts.exits_limit = config.limits.exits
            disks = zip(self.parts.ids.get("disks", ()), config.disks, strict=True)
            named = {id_: disk for id_, disk in disks if id_ not in self.images}
            plug_configured(self.parts, await look_at_images(config.name, named))
            self.parts.ports = own.ports if own is not None else ()
            for number, device in enumerate(own.virtio if own is not None else ()):
                self.parts.plug(device, self.parts.free_id(f"custom{number}"))
            for plugged in self.parts.plugged:
                plugged.device._account = self.parts.account
                plugged.device._label = f"{config.name}: {plugged.id}"
                plugged.device._notify_error = partial(owner.device_failed, plugged.id)
                plugged.device._notify_driver = partial(owner.device_driven, plugged.id)
            self.machine = await self._assembled(self.parts, self.restored, partial(open_parts, self.parts))

    async def _kernel(self, config: VMConfig) -> KernelImage | None:
        """Unpacked, unless it is looked at together with what follows."""
        if self.restored is not None:
            if not all(map(imported, _OF_MACHINES)):
                await in_thread(f"{config.name}: load machine", _import_machines)
        elif not _is_known(config):
            return await in_thread(f"{config.name}: load kernel", _examine, config)
        return None

    @property
    def plugged(self) -> Sequence[PluggedDevice]:
        """All virtio devices; none before they are made and after `aclose`."""
        return self.parts.plugged if self.parts is not None else ()

    async def on(self, machine: Machine, *, paused: bool = False) -> None:
        """The first instruction, unless the machine is halted before. Raises KvmError."""
        await machine.processors.start(paused=paused)
        self._since = _now()
        self.began = self.began or self._since
        self.power_ons += 1
        if self._button_pressed:
            self._button_pressed = False
            machine.press_power_button()

    async def reset(self, stopped: Event, paused: Callable[[], bool]) -> bool:
        """A new machine in the place of the old one, running or `paused`. False, with none running, once `stopped` is set."""
        assert self.parts is not None
        from aiovmm.runtime.descriptors import PROCESS  # for guests that do reset themselves

        with PROCESS.kept(descriptors(self.parts)):
            return await self._reset(self.parts, stopped, paused)

    async def _reset(self, parts: MachineParts, stopped: Event, paused: Callable[[], bool]) -> bool:
        began = _spent()
        alive, old, self.machine = began[0] - self._since, self.machine, None
        if old is not None:
            await old.aclose()
        cost = _cost(began)
        with suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), pause_before_life(alive, max(self._cost, cost)))
        if not stopped.is_set():
            began = _spent()
            self.machine = await self._assembled(parts)
            self._cost = cost + _cost(began)
        if stopped.is_set() or self.machine is None:
            return False
        await self.on(self.machine, paused=paused())
        return not stopped.is_set()

    async def _assembled(
        self, parts: MachineParts, restored: Restored | None = None, opening: Opening | None = None
    ) -> Machine:
        from aiovmm.machine.assembly import Machine

        assert parts.owner is not None, "`build` has said so"
        return await Machine.build(parts, parts.owner, restored, opening)

    def press_button(self) -> None:
        """Tell the guest, or the one that a reset is about to bring."""
        if self.machine is None:
            self._button_pressed = True
        else:
            self.machine.press_power_button()

    @property
    def uptime(self) -> float:
        """Seconds from the first start to the end, or to now."""
        return (self._ended or _now()) - self.began if self.began else 0.0

    async def off(self) -> None:
        """No further instruction. Idempotent."""
        if self.machine is not None:
            await self.machine.processors.stop()
        if self.began:
            self._ended = self._ended or _now()

    async def aclose(self) -> None:
        """Release the machine, its tasks, and the parts. Idempotent."""
        undoing = Undoing()
        if self._own is not None:
            undoing.push(self._own.give_back)
            self._own = None
        if self.parts is not None:
            undoing.push(self.parts.aclose)
        undoing.push(self.tasks.aclose)
        machine, self.machine = self.machine, None
        if machine is not None:
            undoing.push(machine.aclose)
        await undoing.aclose()
        self.parts = None


def _is_known(config: VMConfig) -> bool:
    """Whether a kernel was there before: then it is looked at together with what follows, and need not be before all else."""
    boot = imported("aiovmm.boot.kernel")
    return boot is not None and boot.was_loaded(config.payload.kernel)


def _examine(config: VMConfig) -> KernelImage:
    """The kernel, unpacked. Raises ImageError before anything is opened for it. In a thread: that takes its time, and for the
    first VM of a process all is imported that a machine is made of."""
    _import_machines()
    from aiovmm.boot import load_kernel

    return load_kernel(config.payload.kernel)


def _import_machines() -> None:
    for name in _OF_MACHINES:
        importlib.import_module(name)


def descriptors(parts: MachineParts) -> int:
    """What a machine of these parts may have open, at most: KVM's, its memory's, and doorbells and lines of queues."""
    queues = sum(2 * len(plugged.device.queue_sizes) + _OF_A_DEVICE for plugged in parts.plugged)
    vectors = sum(irq.count + _OF_A_DEVICE for place in parts.hosts for irq in place.device.irqs.values())
    return _OF_A_MACHINE + parts.config.cpus.boot + queues + vectors


def pause_before_life(alive: float, cost: float) -> float:
    """Seconds until a guest that lived for `alive` and whose reset takes `cost` may run again; negative: at once."""
    return max(SHORTEST_LIFE, LIFE_TO_RESET * cost) - alive


def _spent() -> tuple[float, float]:
    """The time, and the processor time of this process."""
    return _now(), time.process_time()


def _cost(began: tuple[float, float]) -> float:
    """Seconds since then, or of processor time if that was less: a reset that waits, for a disk that does not answer say, costs
    nobody anything."""
    return min(end - begin for begin, end in zip(began, _spent(), strict=True))


def _now() -> float:
    return asyncio.get_running_loop().time()
