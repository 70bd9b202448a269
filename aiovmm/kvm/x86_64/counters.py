"""Performance counters, of which no guest has any that was not given them: they tell of what else runs on a core, and are a large
part of KVM. Hiding their CPUID is not enough, since AMD's first four are there whatever it says."""

from __future__ import annotations

from aiovmm.kvm.ioctl import try_call
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import lib

__all__ = ["take_counters"]

_CAP_PMU_CAPABILITY = 212  # Linux 5.18
_PMU_CAP_DISABLE = 1 << 0


def take_counters(vm: VmFd) -> bool:
    """Before its vCPUs. Whether this KVM can; if not, the guest is not told of them. Raises KvmError."""
    if not max(try_call(vm.fd, lib.KVM_CHECK_EXTENSION, _CAP_PMU_CAPABILITY), 0) & _PMU_CAP_DISABLE:
        return False
    vm.enable(_CAP_PMU_CAPABILITY, _PMU_CAP_DISABLE, "taking performance counters away")
    return True
