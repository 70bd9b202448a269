"""The clock that KVM keeps for a VM (kvm-clock), in nanoseconds."""

from __future__ import annotations

from aiovmm.kvm.ioctl import call
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import ffi, lib

__all__ = ["get_clock", "set_clock"]


def get_clock(vm: VmFd) -> int:
    """What it shows now. Raises KvmError."""
    data = ffi.new("struct kvm_clock_data *")
    call(vm.fd, lib.KVM_GET_CLOCK, data, "reading the VM's clock")
    return int(data.clock)


def set_clock(vm: VmFd, ns: int) -> None:
    """Have it go on from `ns`. Raises KvmError."""
    call(vm.fd, lib.KVM_SET_CLOCK, ffi.new("struct kvm_clock_data *", {"clock": ns}), "setting the VM's clock")
