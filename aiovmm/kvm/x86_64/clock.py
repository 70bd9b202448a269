"""The clock that KVM keeps for a VM (kvm-clock), in nanoseconds, and how it goes on after its guest has stood still.

A guest that was paused, or in a snapshot, is to have the right wall clock afterwards, so its time-stamp counters have gone on.
kvm-clock has not, where the guest keeps its time by those counters: Linux does if they are invariant, and counts by kvm-clock how
long each of its tasks has run. With the gap in it the task that ran when the guest was stopped would have run all the time since,
and others would wait for it, or it for them, for as long again: a busy guest of Linux 6.12 was mute for 31 s after 30 s of pause.
Where the counters are not invariant kvm-clock is all the time that there is. There it goes on if no vCPU was at work, whose task
it could be taken for; else the guest is behind by the gap until something sets its clock.

Sources: Linux, arch/x86/kernel/kvmclock.c (kvmclock_init, kvm_sched_clock_init), kernel/sched/fair.c (update_curr).
"""

from __future__ import annotations

from collections.abc import Iterable

from aiovmm.kvm.ioctl import call
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.kvm.vmfd import VmFd
from aiovmm.kvm.x86_64 import cpuid
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.native import ffi, lib

__all__ = ["GuestClock", "get_clock", "has_invariant_counters", "set_clock", "stands_still"]

_RUNNABLE = 0  # KVM_MP_STATE_RUNNABLE: neither halted nor not yet started
_POWER, _INVARIANT_TSC = 0x8000_0007, 1 << 8  # CPUID's leaf, and the bit in its EDX


def get_clock(vm: VmFd) -> int:
    """What it shows now. Raises KvmError."""
    data = ffi.new("struct kvm_clock_data *")
    call(vm.fd, lib.KVM_GET_CLOCK, data, "reading the VM's clock")
    return int(data.clock)


def set_clock(vm: VmFd, ns: int) -> None:
    """Have it go on from `ns`. Raises KvmError."""
    call(vm.fd, lib.KVM_SET_CLOCK, ffi.new("struct kvm_clock_data *", {"clock": ns}), "setting the VM's clock")


def has_invariant_counters(packed_cpuid: bytes) -> bool:
    """Whether a vCPU with this CPUID shows that its time-stamp counter never stops and never changes its frequency."""
    return any(e.function == _POWER and e.edx & _INVARIANT_TSC for e in cpuid.unpack(packed_cpuid))


def stands_still(packed_cpuid: bytes, mp_states: Iterable[int]) -> bool:
    """Whether kvm-clock does while all vCPUs do, which were in these states before."""
    return has_invariant_counters(packed_cpuid) or any(state == _RUNNABLE for state in mp_states)


class GuestClock:
    """Of one VM. `stood`: what it is to go on from when the guest first runs; None: it runs."""

    def __init__(self, vm: VmFd, packed_cpuid: bytes, stood: int | None = None) -> None:
        self._vm = vm
        self._cpuid = packed_cpuid
        self._stood = stood

    @property
    def now(self) -> int:
        """What it shows its guest, in nanoseconds. Raises KvmError."""
        return get_clock(self._vm) if self._stood is None else self._stood

    def stop(self, vcpus: Iterable[Vcpu]) -> None:
        """The guest stands still, with all its `vcpus`. Raises KvmError."""
        states = (VcpuState(vcpu).get_mp_state() for vcpu in vcpus)
        if self._stood is None and stands_still(self._cpuid, states):
            self._stood = get_clock(self._vm)

    def start(self) -> None:
        """The guest is about to run. Raises KvmError."""
        stood, self._stood = self._stood, None
        if stood is not None:
            set_clock(self._vm, stood)
