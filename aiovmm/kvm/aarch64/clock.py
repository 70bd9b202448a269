"""The counter that arm64 guests make all their clocks of, and how it goes on after its guest has stood still.

Linux counts by it how long each of its tasks has run, as well as what time it is. A guest that was paused, or in a snapshot, is
to have the right wall clock afterwards; but with the gap in it the task that ran when the guest was stopped would have run all
the time since, and others would wait for it, or it for them, for as long again. So the counter goes on if all processors waited
for an interrupt, and no task was there for which it could be taken; else it stands still with the guest, which is behind by the
gap until something sets its clock.

Sources: Linux, drivers/clocksource/arm_arch_timer.c (sched_clock_register), arch/arm64/kernel/idle.c (cpu_do_idle);
arch/arm64/kvm/handle_exit.c: of a processor that waits KVM shows the address after its WFI.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.errors import GuestFault
from aiovmm.kvm.aarch64.registers import PC, PSTATE, VIRTUAL_COUNTER, Registers, system_register
from aiovmm.kvm.aarch64.translation import Translation
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.memory import GuestMemory
from aiovmm.native import ffi, lib

__all__ = ["GuestCounter", "waits"]

_SCTLR, _TTBR0, _TTBR1, _TCR = (system_register(3, 0, crn, 0, op2) for crn, op2 in ((1, 0), (2, 0), (2, 1), (2, 2)))
_STOPPED = 5  # KVM_MP_STATE_STOPPED: it has not been started
_WFI = 0xD503207F
_EL1 = 1  # of PSTATE's bits 3 and 2


def waits(vcpu: Vcpu, memory: GuestMemory) -> bool:
    """Whether it is parked in a WFI of the guest's kernel, or has yet to be started. Raises KvmError."""
    state = ffi.new("struct kvm_mp_state *")
    vcpu.ioctl(lib.KVM_GET_MP_STATE, state, "reading the MP state")
    if state.mp_state == _STOPPED:
        return True
    registers = Registers(vcpu)
    if registers.get(PSTATE) >> 2 & 3 != _EL1:
        return False
    tables = registers.get(_TTBR0), registers.get(_TTBR1)
    translation = Translation(registers.get(_TCR), tables, bool(registers.get(_SCTLR) & 1))
    place = translation.physical(registers.get(PC) - 4, lambda address: _read(memory, address, 8))
    return place is not None and _read(memory, place, 4) == _WFI


def _read(memory: GuestMemory, address: int, size: int) -> int:
    """Nothing where a guest's tables lead to no memory."""
    try:
        return int.from_bytes(memory.read(address, size), "little")
    except GuestFault:
        return 0


class GuestCounter:
    """Of one VM. `stood`: what it is to go on from when the guest first runs; None: it runs."""

    def __init__(self, stood: int | None = None) -> None:
        self.stood = stood

    def stop(self, vcpus: Sequence[Vcpu], memory: GuestMemory) -> None:
        """The guest stands still, with all its `vcpus`. Raises KvmError."""
        if self.stood is None and not all(waits(vcpu, memory) for vcpu in vcpus):
            self.stood = Registers(vcpus[0]).get(VIRTUAL_COUNTER)

    def start(self, vcpus: Sequence[Vcpu]) -> None:
        """The guest is about to run. Raises KvmError."""
        stood, self.stood = self.stood, None
        if stood is not None:
            Registers(vcpus[0]).set(VIRTUAL_COUNTER, stood)
