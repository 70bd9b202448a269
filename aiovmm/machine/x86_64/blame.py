"""Whose fault it is that a guest ended as it did."""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.kvm import Kvm, Vcpu
from aiovmm.kvm.x86_64.paging import has_user_pages
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.lifecycle import ExitReason
from aiovmm.memory import GuestMemory

__all__ = ["emulation_failed", "triple_fault"]

_EMULATES = " (this KVM emulates guest code, and cannot run that; `aiovmm doctor` tells)"
_NO_USER_SPACE = ", before any user space ran: it is no kernel for this machine, or it failed as it started"


def triple_fault(
    memory: GuestMemory, ram: Sequence[tuple[int, int]], vcpus: Sequence[Vcpu], index: int
) -> tuple[ExitReason, str]:
    """Reason and detail. A PC is reset by a triple fault, and some kernels do that on purpose; but one that has run no user space
    would only fault again, for ever. Looks at tables for some milliseconds at worst.
    """
    detail = f"triple fault of vCPU {index}"
    seen = [VcpuState(vcpus[index]).paging, *(VcpuState(vcpu).seen_paging for vcpu in vcpus)]
    if any(has_user_pages(memory, ram, paging) for paging in seen):
        return ExitReason.REBOOT, detail
    return ExitReason.TRIPLE_FAULT, detail + _NO_USER_SPACE


def emulation_failed(detail: str) -> tuple[ExitReason, str]:
    """An end that is KVM's fault where it emulates all of a guest, and else the guest's, at a device or in real mode. Blocks."""
    return ExitReason.ERROR, detail + (_EMULATES if _kvm_emulates() else "")


def _kvm_emulates() -> bool:
    """Whether this host's KVM emulates all guest code; False where it cannot be asked for want of memory, files or time."""
    try:
        with Kvm.open() as kvm:
            return kvm.emulates_guest_code()
    except (OSError, MemoryError):
        return False
