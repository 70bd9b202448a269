"""What a guest finds of Hyper-V's interfaces, for Windows: leaves 0x40000000 and up are those of "Hv#1", and KVM's own are 0x100
further, where Linux looks for them, too. Pure.

Sources: Hypervisor Top Level Functional Specification 6.0b, 2.4; arch/x86/kvm/hyperv.c (kvm_get_hv_cpuid);
Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

from collections.abc import Iterable

from aiovmm.boot.x86_64.cpuid import CpuidEntry
from aiovmm.runtime.dataclass import replace

__all__ = ["has_hyperv", "with_hyperv"]

_BASE, _INTERFACE, _FEATURES, _ADVICE, _NESTED = 0x40000000, 0x40000001, 0x40000003, 0x40000004, 0x4000000A
_STEP = 0x100
_HV1 = 0x31237648  # "Hv#1"
_DEBUGGING, _DEBUG_MSRS = 1 << 12, 1 << 11  # of _FEATURES, EBX and EDX
_ENLIGHTENED_VMCS = 1 << 14  # of _ADVICE, EAX


def has_hyperv(entries: Iterable[CpuidEntry]) -> bool:
    """Whether a guest with `entries` is one of "Hv#1"."""
    return any(e.function == _INTERFACE and e.eax == _HV1 for e in entries)


def with_hyperv(entries: Iterable[CpuidEntry], offered: Iterable[CpuidEntry]) -> list[CpuidEntry]:
    """`entries` of a guest of KVM's, and before them those of `offered` (KVM_GET_SUPPORTED_HV_CPUID) that need nothing further:
    not the debugger's, and not the enlightened VMCS, which is to be enabled for each vCPU."""
    shown = [_edited(e) for e in offered if _BASE <= e.function <= _NESTED]
    last = max((e.function for e in shown), default=_BASE)
    shown = [replace(e, eax=last) if e.function == _BASE else e for e in shown]
    return [*shown, *(_moved(e) if _BASE <= e.function < _BASE + _STEP else e for e in entries)]


def _edited(entry: CpuidEntry) -> CpuidEntry:
    if entry.function == _FEATURES:
        return replace(entry, ebx=entry.ebx & ~_DEBUGGING, edx=entry.edx & ~_DEBUG_MSRS)
    if entry.function == _ADVICE:
        return replace(entry, eax=entry.eax & ~_ENLIGHTENED_VMCS)
    return replace(entry, eax=0, ebx=0) if entry.function == _NESTED else entry


def _moved(entry: CpuidEntry) -> CpuidEntry:
    last = entry.eax + _STEP if entry.function == _BASE and entry.eax else entry.eax
    return replace(entry, function=entry.function + _STEP, eax=last)
