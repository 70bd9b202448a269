"""Model-specific registers: which of them KVM keeps, and their values."""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import Any

from aiovmm.errors import KvmError
from aiovmm.kvm.ioctl import call, error, try_call
from aiovmm.native import ffi, lib

__all__ = ["get", "get_supported", "packed", "set_", "try_set"]

_HEADER = struct.Struct("<II")  # struct kvm_msrs: nmsrs, pad
_ENTRY = struct.Struct("<IIQ")  # struct kvm_msr_entry: index, reserved, data
_LARGEST = 4096


def get_supported(kvm_fd: int) -> list[int]:
    """Indices of the registers that make up a guest's state (KVM_GET_MSR_INDEX_LIST). Raises KvmError."""
    count = 256
    while True:
        buffer = ffi.new("uint32_t[]", 1 + count)
        buffer[0] = count
        result = try_call(kvm_fd, lib.KVM_GET_MSR_INDEX_LIST, buffer)
        if result >= 0:
            return [int(buffer[1 + i]) for i in range(buffer[0])]
        if result != -errno.E2BIG or count >= _LARGEST:
            raise error("asking KVM for its model-specific registers", -result)
        count *= 2


def get(vcpu_fd: int, indices: list[int]) -> dict[int, int]:
    """Values by index. Registers that KVM lists but cannot read for this guest are left out. Raises KvmError."""
    values: dict[int, int] = {}
    while indices:
        buffer = ffi.new("char[]", _HEADER.pack(len(indices), 0) + b"".join(_ENTRY.pack(i, 0, 0) for i in indices))
        done = call(vcpu_fd, lib.KVM_GET_MSRS, buffer, "reading model-specific registers")
        view = ffi.buffer(buffer)
        for n in range(done):
            index, _, data = _ENTRY.unpack_from(view, _HEADER.size + n * _ENTRY.size)
            values[index] = data
        indices = indices[done + 1 :]  # KVM stops at the first it cannot read
    return values


def set_(vcpu_fd: int, values: dict[int, int]) -> None:
    """Set the registers, in order. Raises KvmError that names the first one KVM refuses."""
    rows = list(values.items())
    done = try_set(vcpu_fd, rows)
    if done < len(rows):
        index, data = rows[done]
        raise KvmError(f"setting model-specific register {index:#x} to {data:#x}", errno.EINVAL)


def try_set(vcpu_fd: int, values: Sequence[tuple[int, int]]) -> int:
    """Set (index, value) in order, up to the first that KVM refuses: how many were set. Raises KvmError."""
    return call(vcpu_fd, lib.KVM_SET_MSRS, packed(values), "setting model-specific registers")


def packed(values: Sequence[tuple[int, int]]) -> Any:
    """The `struct kvm_msrs` of (index, value), in order."""
    body = b"".join(_ENTRY.pack(index, 0, data) for index, data in values)
    return ffi.new("char[]", _HEADER.pack(len(values), 0) + body)
