"""A vCPU's registers: each has a number, by which KVM reads and sets it.

The number of a general register is its offset in KVM's own structure; that of a system register is made of the five fields that
name it in instructions (op0, op1, CRn, CRm, op2). While the guest runs nothing can be read or set: KVM holds the vCPU's lock.
"""

from __future__ import annotations

import errno
from typing import Any

from aiovmm.kvm.ioctl import error, try_call
from aiovmm.kvm.vcpu import Vcpu
from aiovmm.native import ffi, lib, owners

__all__ = [
    "COUNTERS",
    "MPIDR_EL1",
    "PC",
    "PSTATE",
    "SP",
    "VECTOR_LENGTHS",
    "VIRTUAL_COUNTER",
    "Registers",
    "size_of",
    "system_register",
    "x",
]

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

VIRTUAL_COUNTER = system_register(3, 3, 14, 3, 2)
"""What Linux makes all its clocks of. The guest's processors share it: to set it on one sets it on all. (KVM has its number and
that of the virtual timer's compare value the wrong way round, and keeps to that.)"""
COUNTERS = (VIRTUAL_COUNTER, system_register(3, 3, 14, 0, 1))
"""It, and the physical one, which KVM lets be set since Linux 6.4."""

VECTOR_LENGTHS = 0x6060_0000_0015_FFFF
"""Of SVE: those that the vCPU has, a bit each. It can be set before they are fixed (features.reset), and not after."""


def size_of(number: int) -> int:
    """Bytes that the register has: its number says it."""
    return 1 << (number >> 52 & 0xF)


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

    def listed(self) -> list[int]:
        """The numbers of all that KVM has of it."""
        count = ffi.new("uint64_t *", 0)
        result = try_call(self._vcpu.checked_fd(), lib.KVM_GET_REG_LIST, count)
        if result < 0 and result != -errno.E2BIG:  # which says how many there are
            raise error("asking which registers there are", -result)
        numbers = ffi.new("uint64_t[]", [count[0], *[0] * count[0]])
        self._vcpu.ioctl(lib.KVM_GET_REG_LIST, numbers, "listing the registers")
        return [int(number) for number in numbers[1 : numbers[0] + 1]]

    def read(self, number: int) -> bytes:
        """The bytes of a register of any size, the least first."""
        value = ffi.new("uint8_t[]", size_of(number))
        self._one(lib.KVM_GET_ONE_REG, number, value, "reading")
        return bytes(ffi.buffer(value))

    def write(self, number: int, data: bytes) -> None:
        """Set a register of any size to these bytes, as many as it has."""
        if len(data) != size_of(number):
            raise ValueError(f"register {number:#x} has {size_of(number)} bytes, not {len(data)}")
        self._one(lib.KVM_SET_ONE_REG, number, ffi.new("uint8_t[]", data), "setting")

    def _one(self, request: int, number: int, value: Any, verb: str) -> None:
        argument = ffi.new("struct kvm_one_reg *", (number, owners.address(value)))
        self._vcpu.ioctl(request, argument, f"{verb} register {number:#x}")
