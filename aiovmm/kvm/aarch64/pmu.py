"""Performance counters: their overflow is an interrupt of each processor's own, and they begin to count for guests."""

from __future__ import annotations

from collections.abc import Iterable

from aiovmm.kvm.attributes import set_attribute
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.native import ffi

__all__ = ["set_up"]

_PMU_V3_CTRL, _IRQ, _INIT = 0, 0, 1  # KVM_ARM_VCPU_PMU_V3_*
_FIRST_PPI = 16


def set_up(vcpus: Iterable[Vcpu], ppi: int) -> None:
    """Of vCPUs that have the feature, after the interrupt controller: overflows raise `ppi`. Raises KvmError."""
    number = ffi.new("int *", _FIRST_PPI + ppi)
    for vcpu in vcpus:
        fd = vcpu.checked_fd()
        set_attribute(fd, _PMU_V3_CTRL, _IRQ, number, f"the counters' interrupt of vCPU {vcpu.index}")
        set_attribute(fd, _PMU_V3_CTRL, _INIT, None, f"setting up the counters of vCPU {vcpu.index}")
