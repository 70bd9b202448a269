"""What guests need of an arm64 host's KVM. See kvm.architecture."""

from __future__ import annotations

from collections.abc import Mapping

from aiovmm.kvm.aarch64.device import DeviceType, is_there
from aiovmm.kvm.ioctl import try_call
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import lib

__all__ = [
    "CAP_NISV_TO_USER",
    "NO_DEVICE",
    "OLDEST_LINUX",
    "REQUIRED_CAPABILITIES",
    "address_bits",
    "emulates_guest_code",
    "shortcomings",
    "vm_type",
]

NO_DEVICE = "its kernel must be built with KVM and be started at EL2 (`dmesg | grep -i kvm` says why it was not)"
OLDEST_LINUX = "Linux 4.11"

REQUIRED_CAPABILITIES: Mapping[str, int] = {
    "KVM_CAP_USER_MEMORY": 3,
    "KVM_CAP_MP_STATE": 14,
    "KVM_CAP_IRQ_ROUTING": 25,
    "KVM_CAP_IRQFD": 32,
    "KVM_CAP_IOEVENTFD": 36,
    "KVM_CAP_ONE_REG": 70,
    "KVM_CAP_SIGNAL_MSI": 77,
    "KVM_CAP_READONLY_MEM": 81,
    "KVM_CAP_ENABLE_CAP_VM": 98,
    "KVM_CAP_ARM_PSCI_0_2": 102,
    "KVM_CAP_IMMEDIATE_EXIT": 136,
}

_CAP_ARM_VM_IPA_SIZE = 165
CAP_NISV_TO_USER = 177
"""Loads and stores that say too little of themselves for a device become exits (native/src/aarch64/exits.c)."""
_OLD_BITS = 40  # of a KVM that cannot say
_MOST_BITS = 48  # what a guest with pages of 4 KiB can address without 52-bit extensions, which few have

_WITHOUT_GICV3 = (
    "run it on a host whose interrupt controller is a GICv3 or newer (that of a Raspberry Pi 4 is a GICv2, which cannot give "
    "guests message-signalled interrupts)"
)


def address_bits(kvm_fd: int) -> int:
    """Of guest-physical addresses."""
    return min(max(try_call(kvm_fd, lib.KVM_CHECK_EXTENSION, _CAP_ARM_VM_IPA_SIZE), 0) or _OLD_BITS, _MOST_BITS)


def vm_type(kvm_fd: int) -> int:
    """The width of guest-physical addresses; 0, which is 40 bits, where KVM has no choice."""
    known = try_call(kvm_fd, lib.KVM_CHECK_EXTENSION, _CAP_ARM_VM_IPA_SIZE) > 0
    return address_bits(kvm_fd) if known else 0


def shortcomings(vm: VmFd) -> list[tuple[str, str]]:
    """A host with an older interrupt controller."""
    wanted = {
        DeviceType.VGIC_V3: "GICv3 interrupt controller for guests",
        DeviceType.VGIC_ITS: "ITS (messages) for guests",
    }
    return [
        (f"this host's KVM has no {what}", _WITHOUT_GICV3) for type_, what in wanted.items() if not is_there(vm, type_)
    ]


def emulates_guest_code(vm: VmFd) -> bool:
    """There is no such KVM."""
    vm.close()
    return False
