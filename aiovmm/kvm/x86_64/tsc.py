"""The time-stamp counters of a VM's vCPUs are one clock, and remain one where they are read and set in turn.

Between one vCPU and the next any time may pass: a host is busy, or stands still. KVM takes two counters for one clock only if
each is set within a second of what the other shows by then (kvm_synchronize_tsc); later, they differ by that time for ever. So
where KVM tells how far each counter is ahead of the host's (KVM_VCPU_TSC_OFFSET, Linux 5.16), that decides.

Sources: Documentation/virt/kvm/devices/vcpu.rst, 4; arch/x86/kvm/x86.c.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.kvm.attributes import get_attribute, has_attribute, set_attribute
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.native import ffi

__all__ = ["agree", "offsets"]

_CONTROL, _OFFSET = 0, 0  # KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET
_WORD = 1 << 64


def offsets(vcpus: Sequence[Vcpu]) -> list[int] | None:
    """How far each counter is ahead of the host's, modulo 2**64; None where KVM does not tell. Raises KvmError."""
    if not has_attribute(vcpus[0].checked_fd(), _CONTROL, _OFFSET):
        return None
    return [_offset(vcpu) for vcpu in vcpus]


def agree(vcpus: Sequence[Vcpu], values: Sequence[int], khz: int) -> None:
    """The counters were set to `values` one after the other, however long that took: those that are to show what the first one
    shows, by a second, do. Raises KvmError."""
    if not has_attribute(vcpus[0].checked_fd(), _CONTROL, _OFFSET):
        return
    offset = ffi.new("uint64_t *", _offset(vcpus[0]))
    for vcpu, value in zip(vcpus[1:], values[1:], strict=True):
        if min((value - values[0]) % _WORD, (values[0] - value) % _WORD) < khz * 1000:
            set_attribute(vcpu.checked_fd(), _CONTROL, _OFFSET, offset, "setting the time-stamp counter")


def _offset(vcpu: Vcpu) -> int:
    value = ffi.new("uint64_t *")
    get_attribute(vcpu.checked_fd(), _CONTROL, _OFFSET, value, "reading the time-stamp counter's offset")
    return int(value[0])
