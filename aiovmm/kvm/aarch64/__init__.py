"""What KVM has on arm64 alone. In the order in which a VM needs them: vCPUs first, then the interrupt controller.

host       what guests need of KVM; see kvm.architecture
registers  a vCPU's registers, by number
features   what vCPUs can have here, and their reset
device     KVM's in-kernel devices and the attributes they are set up by
gic        the interrupt controller, GICv3 with an ITS for messages
pmu        performance counters
clock      the counter that a guest's clocks are made of
translation  where a virtual address of a guest's lies
pins       lines to the interrupt controller, and how the end of their interrupts is told

Source: Linux, Documentation/virt/kvm/api.rst and devices/{arm-vgic-v3,arm-vgic-its,vcpu}.rst.
"""

from aiovmm.kvm.aarch64.host import (
    NO_DEVICE,
    OLDEST_LINUX,
    REQUIRED_CAPABILITIES,
    emulates_guest_code,
    shortcomings,
    vm_type,
)

__all__ = [
    "NO_DEVICE",
    "OLDEST_LINUX",
    "REQUIRED_CAPABILITIES",
    "emulates_guest_code",
    "shortcomings",
    "vm_type",
]
