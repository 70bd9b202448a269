"""What guests need of an x86-64 host's KVM. See kvm.architecture."""

from __future__ import annotations

from collections.abc import Mapping

from aiovmm.kvm.vmfd import VmFd

__all__ = ["NO_DEVICE", "OLDEST_LINUX", "REQUIRED_CAPABILITIES", "shortcomings", "vm_type"]

NO_DEVICE = "load the kvm_intel or kvm_amd module (`modprobe`), and enable VT-x or AMD-V in the firmware"
OLDEST_LINUX = "Linux 4.11"

REQUIRED_CAPABILITIES: Mapping[str, int] = {
    "KVM_CAP_USER_MEMORY": 3,
    "KVM_CAP_SET_TSS_ADDR": 4,
    "KVM_CAP_EXT_CPUID": 7,
    "KVM_CAP_MP_STATE": 14,
    "KVM_CAP_IRQ_ROUTING": 25,
    "KVM_CAP_IRQFD": 32,
    "KVM_CAP_IOEVENTFD": 36,
    "KVM_CAP_SET_IDENTITY_MAP_ADDR": 37,
    "KVM_CAP_VCPU_EVENTS": 41,
    "KVM_CAP_SIGNAL_MSI": 77,
    "KVM_CAP_READONLY_MEM": 81,
    "KVM_CAP_ENABLE_CAP_VM": 98,
    "KVM_CAP_SPLIT_IRQCHIP": 121,
    "KVM_CAP_IMMEDIATE_EXIT": 136,
}


def vm_type(_kvm_fd: int) -> int:
    """There is one."""
    return 0


def shortcomings(_vm: VmFd) -> list[tuple[str, str]]:
    """None that the capabilities do not tell of."""
    return []
