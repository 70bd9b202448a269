"""A machine that stands still: its devices suspended, its state read, and all of it put into another machine.

suspend      all vCPUs are parked; what they did is served, devices finish or put back what they have, the IOMMU last
save         state as plain data
unsuspend    devices go on where they were
restore      the state into a machine that was built for it, and has its vCPUs
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.errors import SnapshotError
from aiovmm.machine.device_memory import refuse_moved
from aiovmm.machine.own import load_ports, save_ports
from aiovmm.machine.restored import Restored
from aiovmm.runtime.plain import Fields, State
from aiovmm.runtime.tasks import finish, in_thread

if TYPE_CHECKING:
    from aiovmm.machine.assembly import Machine

__all__ = ["restore", "save", "suspend", "unsuspend"]


async def suspend(machine: Machine) -> None:
    """Its vCPUs are parked. Raises SnapshotError that names what cannot be saved, with everything going on as before."""
    _refuse_unsaved(machine)
    pci = machine.pci.root
    try:
        await machine.exits.served()
        await machine.worker.submit(_nothing)  # all calls before it are made
        await pci.suspend()
        await machine.worker.submit(_nothing)
    except BaseException:
        await finish(pci.unsuspend())
        raise


def _nothing() -> None:
    """A call that waits for all before it."""


def _refuse_unsaved(machine: Machine) -> None:
    if hosts := machine.parts.hosts:
        ids = ", ".join(place.id for place in hosts)
        raise SnapshotError(
            f"a guest with devices of the host ({ids}) cannot be saved: what is in them is out of reach; unplug them"
        )
    refuse_moved(machine)
    for port in machine.parts.ports:
        if (why := port.why_not_saved) is not None:
            hint = "give its class `def save(self)` and `def load(self, state)`"
            raise SnapshotError(f"device {port.name!r} cannot be saved: {why}; {hint}")


async def unsuspend(machine: Machine) -> None:
    """Devices go on, those before others that they need. Idempotent."""
    await machine.pci.root.unsuspend()


async def save(machine: Machine) -> State:
    """Of a machine that is suspended: devices first, for what they hold back may be an interrupt. Raises SnapshotError,
    KvmError."""
    state: State = {
        "pci": machine.pci.root.save(),
        "devices": machine.board.save_devices(),
        "serial": machine.parts.serial.save(),  # what no device has taken, read in one step with those
        "console": machine.parts.console.save(),
        "ports": await save_ports(machine.parts.ports),
    }
    await machine.worker.submit(_nothing)
    state["board"] = await in_thread(f"{machine.parts.config.name}: save vCPUs", machine.board.save)
    return state


async def restore(machine: Machine, restored: Restored) -> None:
    """Put it in, with all devices at work again afterwards. Raises SnapshotError, KvmError, HostError."""
    fields = Fields(restored.state, "machine")
    board, pci = machine.board, machine.pci.root
    await board.restore_devices(restored)
    await pci.load(fields.state("pci"))
    await load_ports(machine.parts.ports, fields.list("ports"))
    board.unsuspend_devices()
    await pci.unsuspend()
    machine.parts.serial.load(fields.state("serial"))
    machine.parts.console.load(fields.state("console"))
