"""What of this host's processor a guest may see and use, beyond its topology. Pure.

KVM lists what it can offer. It leaves out what only tells of the host (brand, caches, the TSC's frequency), and lists some things
that work only if more is done (AMX's state needs a permission), that not every guest shall have (virtualization), or that none
shall: asynchronous page faults. KVM would tell a guest that a page is still to come, and later that it is there, where the host
waits for a page: for a fork's, which others have in common with it, or a restored guest's, which are in a file. What is told and
not yet taken is in no state that KVM gives, so guests that were saved just then wait for ever, or wake who does not sleep. (The
reference monitor leaves them in.) KVM itself has the vCPU wait then. docs/reference.md has all that differs from KVM's list.
Sources: Intel SDM vol. 1, 13.2 and vol. 2A, CPUID; AMD APM vol. 3, appendix E; Documentation/arch/x86/xstate.rst;
Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from aiovmm.boot.x86_64.cpuid import CpuidEntry
from aiovmm.runtime.dataclass import replace

__all__ = [
    "ASYNC_PF",
    "HOST_LEAVES",
    "MAX_PHYS_BITS",
    "allow",
    "has_amx",
    "reachable_bits",
    "tell_of_host",
    "visible_bits",
]

BRAND = (0x80000002, 0x80000003, 0x80000004)
_CACHES = (0x80000005, 0x80000006)
_POWER = 0x80000007
HOST_LEAVES = (*BRAND, *_CACHES, _POWER)
"""What tell_of_host wants to know of the host itself."""
MAX_PHYS_BITS = 46
"""A cap on the width of physical addresses where none is asked for, the reference monitor's: it is what all hosts can page."""

_INVARIANT_TSC = 1 << 8  # leaf 0x80000007, EDX
_KVM_SIGNATURE, _KVM_TIMING = 0x40000000, 0x40000010
_KVM_FEATURES = 0x40000001
ASYNC_PF = 1 << 4 | 1 << 10 | 1 << 14  # its EAX: ASYNC_PF, ASYNC_PF_VMEXIT, ASYNC_PF_INT
_APIC_BUS_KHZ = 1_000_000  # KVM's local APIC timer counts nanoseconds
_VMX, _SVM = 1 << 5, 1 << 2  # leaf 1 ECX, leaf 0x80000001 ECX
_PDCM, _PERFCTR = (
    1 << 15,
    1 << 23 | 1 << 24 | 1 << 28,
)  # leaf 1 ECX; leaf 0x80000001 ECX: core, north bridge, last cache
_ARCH_LBR = 1 << 19  # leaf 7 EDX
_PMU_LEAVES = (0xA, 0x1C, 0x23, 0x80000022)  # architectural, branch records, more of the former, AMD's second version
_AMX_7_0_EDX = 1 << 22 | 1 << 24 | 1 << 25  # BF16, TILE, INT8
_AMX_7_1_EAX = 1 << 21  # FP16
_AMX_7_1_EDX = 1 << 8  # COMPLEX
_AMX_LEAVES = (0x1D, 0x1E)
_TILE_STATE = (17, 18)  # XTILECFG and XTILEDATA: bits of XCR0, and sub-leaves of 0xD
_LEGACY_XSAVE = 576  # bytes: x87, SSE and the header


def visible_bits(entries: Iterable[CpuidEntry], cap: int | None) -> int:
    """Width in bits of the physical addresses that a guest is told of: 0x80000008 EAX[7:0]; 36 where a processor does not say."""
    width = next((e.eax & 0xFF for e in entries if e.function == 0x80000008), 36)
    return min(width, cap or MAX_PHYS_BITS)


def reachable_bits(entries: Sequence[CpuidEntry], cap: int | None) -> int:
    """The same of those that it can use: less where nested paging is narrower (EAX[23:16], of Linux since 6.9)."""
    usable = next((e.eax >> 16 & 0xFF for e in entries if e.function == 0x80000008), 0)
    return min(visible_bits(entries, cap), usable or 64)


def has_amx(entries: Iterable[CpuidEntry]) -> bool:
    """Whether KVM offers AMX's instructions and their state."""
    told = {(e.function, e.index): e for e in entries}
    tile, state = told.get((7, 0)), told.get((0xD, 0))
    return bool(tile and tile.edx & _AMX_7_0_EDX and state and all(state.eax >> bit & 1 for bit in _TILE_STATE))


def allow(
    entries: Iterable[CpuidEntry], *, nested: bool = False, amx: bool = False, pmu: bool = False, invtsc: bool = False
) -> list[CpuidEntry]:
    """`entries` without asynchronous page faults, without virtualization unless `nested`, without AMX unless `amx`, without
    performance counters unless `pmu`; with an invariant time-stamp counter if `invtsc`."""
    result = [replace(e, eax=e.eax & ~ASYNC_PF) if e.function == _KVM_FEATURES else e for e in entries]
    if not pmu:
        result = [_NO_PMU.get((e.function, e.index), _unchanged)(e) for e in result if e.function not in _PMU_LEAVES]
    if not nested:
        result = [_NO_NESTED.get(e.function, _unchanged)(e) for e in result if e.function != 0x8000000A]
    if invtsc:
        result = [e for e in result if e.function != _POWER] + [_invariant(result)]
    return result if amx else _without_amx(result)


def _invariant(entries: Iterable[CpuidEntry]) -> CpuidEntry:
    power = next((e for e in entries if e.function == _POWER), CpuidEntry(_POWER))
    return replace(power, edx=power.edx | _INVARIANT_TSC)


def tell_of_host(
    entries: Iterable[CpuidEntry], host: Iterable[CpuidEntry], *, tsc_khz: int | None = None
) -> list[CpuidEntry]:
    """`entries` with the brand string of `host` (its own HOST_LEAVES), its caches where KVM says nothing, and `tsc_khz`, the
    frequency of the guest's TSC, where that does not change.
    """
    own = {e.function: e for e in host}
    result = [e for e in entries if e.function not in BRAND and e.function != _KVM_TIMING]
    result = [own.get(e.function, e) if e.function in _CACHES and _is_empty(e) else e for e in result]
    result += [own[leaf] for leaf in BRAND if leaf in own]
    if tsc_khz and _POWER in own and own[_POWER].edx & _INVARIANT_TSC:
        result = [replace(e, eax=max(e.eax, _KVM_TIMING)) if e.function == _KVM_SIGNATURE else e for e in result]
        result.append(CpuidEntry(_KVM_TIMING, eax=tsc_khz, ebx=_APIC_BUS_KHZ))
    return result


def _is_empty(entry: CpuidEntry) -> bool:
    return not (entry.eax or entry.ebx or entry.ecx or entry.edx)


def _unchanged(entry: CpuidEntry) -> CpuidEntry:
    return entry


_NO_PMU: dict[tuple[int, int], Callable[[CpuidEntry], CpuidEntry]] = {
    (0x1, 0): lambda e: replace(e, ecx=e.ecx & ~_PDCM),
    (0x7, 0): lambda e: replace(e, edx=e.edx & ~_ARCH_LBR),
    (0x80000001, 0): lambda e: replace(e, ecx=e.ecx & ~_PERFCTR),
}
_NO_NESTED: dict[int, Callable[[CpuidEntry], CpuidEntry]] = {
    0x1: lambda e: replace(e, ecx=e.ecx & ~_VMX),
    0x80000001: lambda e: replace(e, ecx=e.ecx & ~_SVM),
}


def _without_amx(entries: list[CpuidEntry]) -> list[CpuidEntry]:
    kept = [e for e in entries if not (e.function == 0xD and e.index in _TILE_STATE) and e.function not in _AMX_LEAVES]
    edits = ((_AMX_EDITS.get((e.function, e.index)), e) for e in kept)
    return [edit(e, kept) if edit else e for edit, e in edits]


def _without_tile_state(entry: CpuidEntry, kept: list[CpuidEntry]) -> CpuidEntry:
    """Leaf 0xD: what XCR0 may have in EAX, and in ECX the bytes of an area for all of that (EBX, for what it has, is KVM's)."""
    if not any(entry.eax >> bit & 1 for bit in _TILE_STATE):
        return entry
    eax = entry.eax & ~sum(1 << bit for bit in _TILE_STATE)
    parts = (e.ebx + e.eax for e in kept if e.function == 0xD and 2 <= e.index < 32 and eax >> e.index & 1)
    return replace(entry, eax=eax, ecx=max([_LEGACY_XSAVE, *parts]))


_AMX_EDITS: dict[tuple[int, int], Callable[[CpuidEntry, list[CpuidEntry]], CpuidEntry]] = {
    (7, 0): lambda e, _: replace(e, edx=e.edx & ~_AMX_7_0_EDX),
    (7, 1): lambda e, _: replace(e, eax=e.eax & ~_AMX_7_1_EAX, edx=e.edx & ~_AMX_7_1_EDX),
    (0xD, 0): _without_tile_state,
}
