"""The values. All numbers only grow, if nothing else is said; what a reboot of the guest begins anew says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.lifecycle import VMState
from aiovmm.runtime.dataclass import dataclass

if TYPE_CHECKING:
    from aiovmm.devices.virtio.blk import BlkCounters
    from aiovmm.devices.virtio.net import NetCounters
    from aiovmm.devices.virtio.vsock import VsockCounters
    from aiovmm.kvm.vcpu import VcpuCounters
    from aiovmm.virtqueue.config import QueueCounters

__all__ = ["ConsoleStats", "DeviceStats", "LoopStats", "VMStats"]


@dataclass(frozen=True)
class LoopStats:
    """How late the event loop has answered a sign that it is given four times a second while a guest runs on it, in seconds.

    All guests of a loop share it; `pid` is the process that it is in, a pool's worker for one. `blamed` counts who kept it for
    longer than half a second, "VM: device" or a task's name.
    """

    signs: int
    mean: float
    max: float
    last: float
    blamed: dict[str, int]
    pid: int


@dataclass(frozen=True)
class DeviceStats:
    """One device. `queues`, if this process serves them, begin anew with each reboot; `disk`, `net` and `vsock` are of its kind.
    A device of the host has none: nobody sees what the guest does with it."""

    queues: tuple[QueueCounters, ...]
    disk: BlkCounters | None = None
    net: NetCounters | None = None
    vsock: VsockCounters | None = None


@dataclass(frozen=True)
class ConsoleStats:
    """Bytes that the guest has printed, and that it has taken."""

    bytes_out: int
    bytes_in: int


@dataclass(frozen=True)
class VMStats:
    """At one moment.

    `uptime` is in seconds since the first start; `power_ons` counts that and each reboot. `vcpus` (exits, by how they were
    answered) begin anew with each of them. `devices` is by id. `memory` is the size of the guest's RAM, `given_back` what its
    balloon has given back over all time, both in bytes. `consoles` has "serial" and "console". `loop` is None where no guest
    runs; `loop_seconds` is what of its time this guest's exits and devices have taken.
    """

    vm: str
    state: VMState
    uptime: float
    power_ons: int
    vcpus: tuple[VcpuCounters, ...]
    devices: dict[str, DeviceStats]
    memory: int
    given_back: int
    loop: LoopStats | None
    consoles: dict[str, ConsoleStats]
    loop_seconds: float
