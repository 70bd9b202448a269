"""The devices that the embedder brings along, checked when a VM is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from aiovmm.bus import Bus, Range, Space
from aiovmm.devices.port import PortDevice, is_int
from aiovmm.errors import ConfigError, SnapshotError, StateError
from aiovmm.lifecycle import ExitReason
from aiovmm.runtime.dataclass import dataclass
from aiovmm.virtqueue.device import VirtioDevice

if TYPE_CHECKING:
    from aiovmm.machine.board import Board
    from aiovmm.pci.plan import SegmentPlan
    from aiovmm.runtime.plain import State

__all__ = ["OwnDevices", "check_devices", "load_ports", "plug_ports", "save_ports"]

_LARGEST = 32768  # VIRTIO 1.2, 2.7: the largest split ring


@dataclass(frozen=True)
class OwnDevices:
    """Virtio devices, which get the ids custom0, custom1, ..., and devices at ports and addresses."""

    virtio: tuple[VirtioDevice, ...] = ()
    ports: tuple[PortDevice, ...] = ()

    @property
    def _all(self) -> tuple[VirtioDevice | PortDevice, ...]:
        return (*self.virtio, *self.ports)

    def take(self, vm: str) -> None:
        """They are the VM's until `give_back`. Raises StateError, with none taken, if one is in another VM."""
        for device in self._all:
            if device._vm:
                raise StateError(f"{device.name} is in VM {device._vm!r}: make an object for each VM")
        for device in self._all:
            device._vm = vm

    def give_back(self) -> None:
        """They may go into another VM."""
        for device in self._all:
            device._vm = ""
        for device in self.virtio:
            device._notify_error = device._notify_driver = None
        for port in self.ports:
            port._end = None


def check_devices(devices: Any) -> tuple[VirtioDevice, ...]:
    """Those, if they can be plugged. Raises ConfigError."""
    if not isinstance(devices, Iterable):
        raise ConfigError("devices", f"{devices!r} is no list", "devices=[...]")
    checked: list[VirtioDevice] = []
    for number, device in enumerate(devices):
        option = f"devices[{number}]"
        if isinstance(device, type):
            raise ConfigError(option, f"{device.__name__} is a class", f"give an object of it: {device.__name__}(...)")
        if not isinstance(device, VirtioDevice):
            raise ConfigError(option, f"{device!r} is no VirtioDevice", "derive its class from aiovmm.VirtioDevice")
        if any(device is other for other in checked):
            raise ConfigError(option, f"{device.name} is plugged twice", "make an object for each")
        _check(option, device)
        checked.append(device)
    return tuple(checked)


def plug_ports(
    ports: Sequence[PortDevice],
    bus: Bus,
    board: Board,
    plans: Sequence[SegmentPlan],
    ended: Callable[[ExitReason, str], None],
) -> None:
    """Put them on a machine's bus. `ended` is told when one ends the guest. Raises ConfigError or UsageError where something is
    there already, or may come to be."""
    start = board.device_memory_start
    memory = [*board.ram, (start, plans[0].mmio64.base - start)]  # of devices too
    taken = [("the guest's memory", base, size) for base, size in memory]
    taken += [("a PCI window", window.base, window.size) for plan in plans for window in plan.windows]
    _refuse_taken(ports, [*taken, *board.taken], board.free)
    for port in ports:
        if port.space is Space.PIO and not board.has_ports:
            raise ConfigError("ports", f"{port.name} is at a port, which this machine has not", "give it an address")
        port._end = partial(ended, ExitReason.SHUTDOWN)
        port.reset()
        bus.add(Range(port.space, port.base, port.size, port, port.name))


def _refuse_taken(ports: Sequence[PortDevice], taken: Sequence[tuple[str, int, int]], free: tuple[int, int]) -> None:
    """Raises ConfigError for an address that is not the bus's to decide on: there is memory, or KVM answers, or a driver may put
    a PCI device there: `taken`, (what, base, size). `free`, (start, end), is told to who asks for that."""
    for port in ports:
        for what, base, size in taken if port.space is Space.MMIO else ():
            if port.base < base + size and base < port.base + port.size:
                place = f"[{port.base:#x}, {port.base + port.size:#x})"
                raise ConfigError(
                    "ports", f"{port.name} {place} lies in {what}", f"free is {free[0]:#x} to {free[1]:#x}"
                )


async def save_ports(ports: Sequence[PortDevice]) -> list[State]:
    """The state of each, while the guest stands still. Raises SnapshotError, with none asked, if one cannot be saved."""
    from aiovmm.pci.saved import device_state

    for port in ports:
        if (why := port.why_not_saved) is not None:
            raise SnapshotError(f"{port.name} cannot be in a snapshot: {why}")
    return [await device_state(port) for port in ports]


async def load_ports(ports: Sequence[PortDevice], states: Any) -> None:
    """What `save_ports` gave, into the same ports in the same order. Raises SnapshotError."""
    from aiovmm.pci.saved import load_device

    if not isinstance(states, list) or len(states) != len(ports) or not all(isinstance(s, dict) for s in states):
        raise SnapshotError(f"other devices at ports were saved than the {len(ports)} that are given: give the same")
    for port, state in zip(ports, states, strict=True):
        await load_device(port, state)


def _check(option: str, device: VirtioDevice) -> None:
    kind = type(device).__name__
    id_: Any = getattr(device, "device_id", None)
    if not is_int(id_) or not 1 <= id_ < 64:
        hint = "set it to the kind of device that the guest is to see: VIRTIO 1.2, 5"
        raise ConfigError(f"{option}.device_id", f"{kind} has {id_!r}, which is not in 1..63", hint)
    if not isinstance(device.name, str) or not device.name:
        raise ConfigError(f"{option}.name", f"{device.name!r} is not text")
    if not is_int(device.features) or not 0 <= device.features < 1 << 64:
        raise ConfigError(f"{option}.features", f"{device.features!r} is not a number of 64 bits")
    for name, arguments in (("run", "self, queues, features"), ("open", "self"), ("close", "self")):
        if not inspect.iscoroutinefunction(getattr(device, name)):
            reason, hint = f"{kind}.{name} is no coroutine", f"write `async def {name}({arguments})`"
            raise ConfigError(f"{option}.{name}", reason, hint)
    if not isinstance(device.queue_sizes, list | tuple):
        raise ConfigError(
            f"{option}.queue_sizes", f"{device.queue_sizes!r} is no tuple", "a size for each queue: (64,)"
        )
    for size in device.queue_sizes:
        if not is_int(size) or not 2 <= size <= _LARGEST or size & (size - 1):
            raise ConfigError(f"{option}.queue_sizes", f"{size!r} is not a power of two in 2..{_LARGEST}")
