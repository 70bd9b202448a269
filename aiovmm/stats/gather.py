"""From a VM's parts to its numbers. Reads what is counted anyway: it costs nothing until somebody asks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aiovmm.errors import StateError
from aiovmm.lifecycle import VMState
from aiovmm.runtime.lazy import imported
from aiovmm.runtime.watchdog import lateness
from aiovmm.stats.values import ConsoleStats, DeviceStats, LoopStats, VMStats

if TYPE_CHECKING:
    from aiovmm.config import VMConfig
    from aiovmm.console import Console
    from aiovmm.kvm.vcpu import Vcpu, VcpuCounters
    from aiovmm.machine import Machine
    from aiovmm.machine.parts import PluggedDevice
    from aiovmm.virtqueue.device import VirtioDevice

__all__ = ["gather"]


def gather(
    config: VMConfig,
    state: VMState,
    uptime: float,
    power_ons: int,
    machine: Machine | None,
    plugged: Sequence[PluggedDevice],
    consoles: Mapping[str, Console],
) -> VMStats:
    """The numbers of now; those of the machine are missing while a reboot makes a new one."""
    return VMStats(
        config.name,
        state,
        uptime,
        power_ons,
        tuple(_counters(machine.vcpus)) if machine is not None else (),
        {p.id: _device(p, machine) for p in plugged} | _hosts(machine),
        config.ram_size,
        sum(_given_back(p.device) for p in plugged),
        _loop(),
        {id_: ConsoleStats(console.bytes_out, console.bytes_in) for id_, console in consoles.items()},
        machine.parts.account.seconds if machine is not None else 0.0,
    )


def _counters(vcpus: Sequence[Vcpu]) -> list[VcpuCounters]:
    try:
        return [vcpu.counters for vcpu in vcpus]
    except StateError:  # the guest is being taken apart
        return []


def _device(plugged: PluggedDevice, machine: Machine | None) -> DeviceStats:
    disk = net = vsock = None
    kind = type(plugged.device).__module__
    if kind.startswith("aiovmm.devices.virtio.blk"):
        disk = plugged.device.counters  # type: ignore[attr-defined]
    elif kind.startswith("aiovmm.devices.virtio.net"):
        net = plugged.device.counters  # type: ignore[attr-defined]
    elif kind.startswith("aiovmm.devices.virtio.vsock"):
        vsock = plugged.device.counters  # type: ignore[attr-defined]
    queues = machine.devices.queue_counters(plugged.id) if machine is not None else ()
    return DeviceStats(tuple(queues), disk, net, vsock)


def _hosts(machine: Machine | None) -> dict[str, DeviceStats]:
    return {place.id: DeviceStats(()) for place in machine.parts.hosts} if machine is not None else {}


def _given_back(device: VirtioDevice) -> int:
    balloon = imported("aiovmm.devices.virtio.balloon")  # else nobody has one
    return device.given_back if balloon is not None and isinstance(device, balloon.BalloonDevice) else 0


def _loop() -> LoopStats | None:
    late = lateness(asyncio.get_running_loop())
    if late is None:
        return None
    return LoopStats(
        late.signs, late.total / late.signs if late.signs else 0.0, late.most, late.last, dict(late.blamed), os.getpid()
    )
