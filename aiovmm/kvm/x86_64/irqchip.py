"""What a VM gets before its vCPUs on x86-64: pages for KVM's own use, and the split interrupt controller."""

from __future__ import annotations

import contextlib
import errno

from aiovmm.errors import KvmError
from aiovmm.kvm.ioctl import call, try_call
from aiovmm.kvm.routing import GsiRouting
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import ffi, lib

__all__ = ["set_identity_pages", "split_irqchip"]

_CAP_IRQ_ROUTING = 25
_CAP_SPLIT_IRQCHIP = 121
_CAP_X2APIC_API = 129

_HINTS = {errno.EEXIST: "the VM has an interrupt controller, or a vCPU, already"}


def set_identity_pages(vm: VmFd, address: int = 0xFFFB_C000) -> None:
    """Give KVM four pages at `address` of guest-physical space for its own use (real mode on older Intel processors)."""
    arg = ffi.new("uint64_t *", address)
    call(vm.fd, lib.KVM_SET_IDENTITY_MAP_ADDR, arg, "setting the identity map address")
    call(vm.fd, lib.KVM_SET_TSS_ADDR, address + 0x1000, "setting the TSS address")


def split_irqchip(vm: VmFd, pins: int = 24) -> GsiRouting:
    """Local APICs in KVM, the I/O APIC (of `pins`) outside. Before any vCPU. The result is also `vm.routing`.

    Every GSI is then a message to the local APICs. Those below `pins` belong to the I/O APIC: KVM looks for level-triggered
    messages among exactly these, and exits at the end of such an interrupt.
    """
    vm.enable(_CAP_SPLIT_IRQCHIP, pins, "creating the split interrupt controller", _HINTS)
    flags = lib.KVM_X2APIC_API_USE_32BIT_IDS | lib.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
    with contextlib.suppress(KvmError):  # a KVM without it is limited to 255 APIC ids, nothing else
        vm.enable(_CAP_X2APIC_API, flags, "enabling 32-bit APIC ids")
    limit = max(try_call(vm.fd, lib.KVM_CHECK_EXTENSION, _CAP_IRQ_ROUTING), pins)
    vm.routing = GsiRouting(vm.fd, pins, limit)
    return vm.routing
