"""What KVM has on x86-64 alone: CPUID, model-specific registers, the state of a vCPU, page tables.

host          what guests need of KVM; see kvm.architecture
irqchip       what a VM gets before its vCPUs
cpuid, msrs   what KVM offers of both, and how a vCPU gets them
state         registers as plain data; vcpustate reads and sets them
paging        whether a guest has run user space
probe         whether guest kernel code runs on the processor
"""

from aiovmm.kvm.x86_64.host import NO_DEVICE, OLDEST_LINUX, REQUIRED_CAPABILITIES, shortcomings, vm_type
from aiovmm.kvm.x86_64.probe import emulates_guest_code

__all__ = [
    "NO_DEVICE",
    "OLDEST_LINUX",
    "REQUIRED_CAPABILITIES",
    "emulates_guest_code",
    "shortcomings",
    "vm_type",
]
