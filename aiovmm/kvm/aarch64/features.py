"""What vCPUs can have on this host beyond the architecture's base, and their reset."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from aiovmm.errors import KvmError
from aiovmm.kvm.aarch64.registers import VECTOR_LENGTHS, Registers
from aiovmm.kvm.ioctl import call, try_call
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.kvm.vmfd import VmFd
from aiovmm.native import ffi, lib
from aiovmm.runtime.dataclass import dataclass

__all__ = ["VcpuFeatures", "reset"]

_POWER_OFF, _PSCI_0_2, _PMU_V3, _SVE, _PTRAUTH_ADDRESS, _PTRAUTH_GENERIC = 0, 2, 3, 4, 5, 6  # KVM_ARM_VCPU_*
_CAP_PMU_V3, _CAP_SVE, _CAP_PTRAUTH_ADDRESS, _CAP_PTRAUTH_GENERIC = 126, 170, 171, 172


@dataclass(frozen=True)
class VcpuFeatures:
    """Performance counters, scalable vectors, pointer authentication. PSCI all have: it is how processors are started."""

    pmu: bool = False
    sve: bool = False
    pointer_authentication: bool = False

    @classmethod
    def of(cls, kvm_fd: int) -> VcpuFeatures:
        """All that this host has."""

        def has(number: int) -> bool:
            return try_call(kvm_fd, lib.KVM_CHECK_EXTENSION, number) > 0

        both = has(_CAP_PTRAUTH_ADDRESS) and has(_CAP_PTRAUTH_GENERIC)  # KVM takes both or none
        return cls(pmu=has(_CAP_PMU_V3), sve=has(_CAP_SVE), pointer_authentication=both)

    def bits(self) -> list[int]:
        """Numbers of the features to ask for."""
        wanted = {
            _PSCI_0_2: True,
            _PMU_V3: self.pmu,
            _SVE: self.sve,
            _PTRAUTH_ADDRESS: self.pointer_authentication,
            _PTRAUTH_GENERIC: self.pointer_authentication,
        }
        return [number for number, on in wanted.items() if on]


def reset(vm: VmFd, vcpus: Sequence[Vcpu], features: VcpuFeatures, vector_lengths: bytes | None = None) -> None:
    """Have all of them as they come out of reset, for the first time or again: the first in the list will run, the others
    wait until it starts them (PSCI CPU_ON). `vector_lengths` are those of SVE (registers.VECTOR_LENGTHS); None: all that the
    host has. Raises KvmError."""
    argument = ffi.new("struct kvm_vcpu_init *")
    call(vm.fd, lib.KVM_ARM_PREFERRED_TARGET, argument, "asking KVM what processor guests can have")
    for bit in features.bits():
        argument.features[bit // 32] |= 1 << bit % 32
    for vcpu in vcpus:
        if vcpu is not vcpus[0]:
            argument.features[0] |= 1 << _POWER_OFF
        vcpu.ioctl(lib.KVM_ARM_VCPU_INIT, argument, "initializing")
        if features.sve:
            if vector_lengths is not None:
                Registers(vcpu).write(VECTOR_LENGTHS, vector_lengths)
            _finalize(vcpu, _SVE)


def _finalize(vcpu: Vcpu, feature: int) -> None:
    """Of a vCPU that is reset once more KVM refuses it: it is as it was."""
    try:
        vcpu.ioctl(lib.KVM_ARM_VCPU_FINALIZE, ffi.new("int *", feature), "fixing the vector length")
    except KvmError as exc:
        if exc.errno != errno.EPERM:
            raise
