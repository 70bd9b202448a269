"""The devices that the embedder brings along, checked when a VM is made."""

from __future__ import annotations

import inspect
from typing import Any

from aiovmm.devices.port import PortDevice
from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import dataclass
from aiovmm.virtqueue.device import VirtioDevice

__all__ = ["OwnDevices", "check_devices"]

_LARGEST = 32768  # VIRTIO 1.2, 2.7: the largest split ring


@dataclass(frozen=True)
class OwnDevices:
    """Virtio devices, which get the ids custom0, custom1, ..., and devices at ports and addresses."""

    virtio: tuple[VirtioDevice, ...] = ()
    ports: tuple[PortDevice, ...] = ()


def check_devices(devices: Any) -> tuple[VirtioDevice, ...]:
    """Those, if they can be plugged. Raises ConfigError."""
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


def _check(option: str, device: VirtioDevice) -> None:
    kind = type(device).__name__
    id_ = getattr(device, "device_id", None)
    if not isinstance(id_, int) or not 1 <= id_ < 64:
        hint = "set it to the kind of device that the guest is to see: VIRTIO 1.2, 5"
        raise ConfigError(f"{option}.device_id", f"{kind} has {id_!r}, which is not in 1..63", hint)
    if not inspect.iscoroutinefunction(device.run):
        raise ConfigError(
            f"{option}.run", f"{kind}.run is no coroutine", "write `async def run(self, queues, features)`"
        )
    for size in device.queue_sizes:
        if not isinstance(size, int) or not 2 <= size <= _LARGEST or size & (size - 1):
            raise ConfigError(f"{option}.queue_sizes", f"{size!r} is not a power of two in 2..{_LARGEST}")
