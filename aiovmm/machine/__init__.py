"""One power-on of a guest: everything between the parts that survive a reboot and the first instruction.

parts       what survives: kernel image, consoles, virtio devices
power       the machine from the first power-on to the last, resets in between
owner       whom a machine tells
halting     how a guest is stopped for good, and that it is told
assembly    Machine: memory, KVM, bus, devices, tables, vCPUs, built in order and torn down in reverse
guest_memory, device_memory  what its memory is made of
plugging    MachineDevices: what is on its PCI, by id, when it is built and as it comes and goes
processors  its vCPUs: started, paused, one more or less, ended
pci         segments, virtio transports, and their services by KVM
board       what an architecture makes of it, in the room of its name; architecture selects the host's
interrupts  messages of PCI functions by KVM
verdict     what the last exit of a vCPU means for the guest; lost_memory finds out why
devices     virtio devices from their configuration
watch       how a panic is noticed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from aiovmm.machine.assembly import Machine
    from aiovmm.machine.owner import MachineOwner
    from aiovmm.machine.parts import MachineParts, PluggedDevice

__all__ = ["Machine", "MachineOwner", "MachineParts", "PluggedDevice"]

__getattr__ = lazy_names(  # a VM is imported without what machines are made of, which comes with the first one
    __name__,
    {
        "aiovmm.machine.assembly": "Machine",
        "aiovmm.machine.owner": "MachineOwner",
        "aiovmm.machine.parts": "MachineParts PluggedDevice",
    },
)
