"""CPUID as KVM takes it: plain entries and `struct kvm_cpuid2`. What a guest is told is decided elsewhere."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

from aiovmm.errors import KvmError
from aiovmm.kvm.ioctl import error, try_call
from aiovmm.native import ffi, lib
from aiovmm.runtime.dataclass import dataclass

__all__ = [
    "SIGNIFICANT_INDEX",
    "CpuidEntry",
    "get_supported",
    "get_supported_hyperv",
    "of_host",
    "pack",
    "request_amx",
    "unpack",
]

SIGNIFICANT_INDEX = 1
"""Flag: the entry answers only for its index (ECX), not for all of the function (EAX)."""

_HEADER = struct.Struct("<II")  # struct kvm_cpuid2: nent, padding
_ENTRY = struct.Struct("<7I12x")  # struct kvm_cpuid_entry2
_CAP_SYS_HYPERV_CPUID = 191
_XTILEDATA = 18  # the state component of AMX's tiles
_LARGEST = 4096  # entries; KVM itself knows 256 at most (KVM_MAX_CPUID_ENTRIES)


@dataclass(frozen=True)
class CpuidEntry:
    """The answer to CPUID with EAX = function, and ECX = index where flags say that the index counts."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def get_supported(kvm_fd: int) -> list[CpuidEntry]:
    """What this host and its KVM can offer a guest (KVM_GET_SUPPORTED_CPUID). Raises KvmError."""
    return _ask(kvm_fd, lib.KVM_GET_SUPPORTED_CPUID, "asking KVM for the CPUID it supports")


def get_supported_hyperv(kvm_fd: int) -> list[CpuidEntry]:
    """The same of Hyper-V's leaves. Raises KvmError."""
    hint = "this kernel's KVM has none of Hyper-V's interfaces (Linux 5.11, CONFIG_KVM_HYPERV): leave kvm_hyperv= out"
    if try_call(kvm_fd, lib.KVM_CHECK_EXTENSION, _CAP_SYS_HYPERV_CPUID) <= 0:
        raise KvmError("asking KVM for Hyper-V's interfaces", errno.EOPNOTSUPP, hint)
    return _ask(kvm_fd, lib.KVM_GET_SUPPORTED_HV_CPUID, "asking KVM for Hyper-V's interfaces")


def _ask(kvm_fd: int, request: int, operation: str) -> list[CpuidEntry]:
    count = 128
    while True:
        buffer = ffi.new("char[]", _HEADER.size + count * _ENTRY.size)
        view = ffi.buffer(buffer)
        view[: _HEADER.size] = _HEADER.pack(count, 0)
        result = try_call(kvm_fd, request, buffer)
        if result >= 0:
            return unpack(view)
        if result != -errno.E2BIG or count >= _LARGEST:
            raise error(operation, -result)
        count *= 2


def of_host(functions: Iterable[int]) -> list[CpuidEntry]:
    """What this host's own processor answers, for those of `functions` that it has."""
    registers = ffi.new("uint32_t[4]")
    return [CpuidEntry(f, 0, 0, *registers) for f in functions if lib.avmm_cpuid(f, registers)]


def request_amx() -> None:
    """Get this process's guests the permission to use AMX's state. Idempotent. Raises KvmError that says what to do."""
    result = lib.avmm_request_guest_state(_XTILEDATA)
    if result < 0:
        hints = {
            errno.EBUSY: "start the first VM with features=amx before any without it: then it is decided for the process"
        }
        hint = hints.get(-result, "this host's processor or kernel has no AMX: leave features=amx out")
        raise KvmError("asking for AMX in guests", -result, hint)


def pack(entries: Iterable[CpuidEntry]) -> bytes:
    """`struct kvm_cpuid2` with these entries."""
    body = b"".join(_ENTRY.pack(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries)
    if len(body) // _ENTRY.size > _LARGEST:
        raise KvmError("setting the CPUID of a vCPU", errno.E2BIG, f"at most {_LARGEST} entries")
    return _HEADER.pack(len(body) // _ENTRY.size, 0) + body


def unpack(packed: bytes) -> list[CpuidEntry]:
    """The inverse. What follows the entries is ignored."""
    (found, _) = _HEADER.unpack_from(packed)
    return [CpuidEntry(*_ENTRY.unpack_from(packed, _HEADER.size + i * _ENTRY.size)) for i in range(found)]
