"""A vCPU's registers: each has a number, by which KVM reads and sets it.

The number of a general register is its offset in KVM's own structure; that of a system register is made of the five fields that
name it in instructions (op0, op1, CRn, CRm, op2). While the guest runs nothing can be read or set: KVM holds the vCPU's lock.
"""

from __future__ import annotations

from typing import Any

from aiovmm.kvm.vcpu import Vcpu
from aiovmm.native import ffi, lib, owners

__all__ = ["MPIDR_EL1", "PC", "PSTATE", "SP", "Registers", "system_register", "x"]

_U64_OF_ARM64 = 0x6030_0000_0000_0000  # KVM_REG_ARM64 | KVM_REG_SIZE_U64
_CORE, _SYSTEM = 0x0010_0000, 0x0013_0000


def _core(offset: int) -> int:
    """The register at `offset` bytes of struct kvm_regs."""
    return _U64_OF_ARM64 | _CORE | offset // 4


def x(number: int) -> int:
    """General register x0 to x30."""
    if not 0 <= number <= 30:
        raise ValueError(f"there is no x{number}")
    return _core(8 * number)


SP, PC, PSTATE = _core(0xF8), _core(0x100), _core(0x108)


def system_register(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """The one that instructions call S`op0`_`op1`_C`crn`_C`crm`_`op2`."""
    return _U64_OF_ARM64 | _SYSTEM | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


MPIDR_EL1 = system_register(3, 0, 0, 0, 5)
"""Where it stands among the processors: what a device tree calls it by, and PSCI."""


class Registers:
    """Those of one vCPU. All raise KvmError, and StateError while the guest runs."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu

    def get(self, number: int) -> int:
        """The value of a register of 64 bits."""
        value = ffi.new("uint64_t *")
        self._one(lib.KVM_GET_ONE_REG, number, value, "reading")
        return int(value[0])

    def set(self, number: int, value: int) -> None:
        """Set a register of 64 bits."""
        self._one(lib.KVM_SET_ONE_REG, number, ffi.new("uint64_t *", value), "setting")

    def _one(self, request: int, number: int, value: Any, verb: str) -> None:
        argument = ffi.new("struct kvm_one_reg *", (number, owners.address(value)))
        self._vcpu.ioctl(request, argument, f"{verb} register {number:#x}")
