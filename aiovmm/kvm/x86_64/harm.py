"""What a guest can do with single instructions that holds up every processor of the host, and what is made of it.

A locked access across two cache lines, or to uncached memory, locks the memory bus for all (thousands of cycles each). And there
are instructions that let no interrupt in for as long as a guest likes, by nesting exceptions (CVE-2015-5307 and others). Intel's
newer processors leave the guest for either: Documentation/virt/kvm/api.rst, KVM_CAP_X86_BUS_LOCK_EXIT (Linux 5.12) and
KVM_CAP_X86_NOTIFY_VMEXIT (6.0). Both are counted (VcpuCounters), and who does them without end is slowed by a token bucket.
"""

from __future__ import annotations

from aiovmm.kvm.ioctl import try_call
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import lib

__all__ = ["bound_harm"]

_CAP_BUS_LOCK_EXIT, _CAP_NOTIFY = 193, 219
_BUS_LOCK_EXITS = 1 << 1  # KVM_BUS_LOCK_DETECTION_EXIT
_NOTIFY_ENABLED, _NOTIFY_USER = (
    1 << 0,
    1 << 1,
)  # KVM_X86_NOTIFY_VMEXIT_*; a window of 0 is the processor's own least one
_RATE = 1000
"""A second: a thousandth of the bus's time, and far more than any program makes that does not mean to."""


def bound_harm(vm: VmFd) -> list[str]:
    """Before its vCPUs: have KVM tell of both, as far as it can, and bound them. What there is of "bus locks" and "notifies".
    Raises KvmError."""
    told = []
    if max(try_call(vm.fd, lib.KVM_CHECK_EXTENSION, _CAP_BUS_LOCK_EXIT), 0) & _BUS_LOCK_EXITS:
        vm.enable(_CAP_BUS_LOCK_EXIT, _BUS_LOCK_EXITS, "having bus locks told")
        told.append("bus locks")
    wanted = _NOTIFY_ENABLED | _NOTIFY_USER
    if max(try_call(vm.fd, lib.KVM_CHECK_EXTENSION, _CAP_NOTIFY), 0) & wanted == wanted:
        vm.enable(_CAP_NOTIFY, wanted, "having it told where no interrupt gets in")
        told.append("notifies")
    if told:
        vm.limit_harm(_RATE)
    return told
