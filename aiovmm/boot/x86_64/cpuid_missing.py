"""What a guest was shown of a processor and another host has not: for guests that go on there. Pure.

Source of bits and names: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; names are Linux's.
"""

from __future__ import annotations

from collections.abc import Iterable

from aiovmm.boot.x86_64.cpuid import CpuidEntry
from aiovmm.boot.x86_64.cpuid_policy import ASYNC_PF

__all__ = ["missing"]

_FEATURES: dict[tuple[int, int], tuple[str, ...]] = {
    (1, 0): ("ecx", "edx"),
    (6, 0): ("eax",),
    (7, 0): ("ebx", "ecx", "edx"),
    (7, 1): ("eax", "ebx", "edx"),
    (7, 2): ("edx",),
    (0xD, 0): ("eax", "edx"),
    (0xD, 1): ("eax", "ecx"),
    (0x40000001, 0): ("eax",),
    (0x40000003, 0): ("eax", "edx"),  # of Hyper-V's, and then KVM's own are 0x100 further
    (0x40000101, 0): ("eax",),
    (0x80000001, 0): ("ecx", "edx"),
    (0x80000007, 0): ("edx",),
    (0x80000008, 0): ("ebx",),
    (0x8000000A, 0): ("edx",),
    (0x80000021, 0): ("eax",),
}
"""Registers whose every bit says that something is there."""

_NOT_OF_THE_HOST = {(1, "ecx"): 1 << 27, (1, "edx"): 1 << 9, (7, "ecx"): 1 << 4} | {
    (leaf, "eax"): ASYNC_PF for leaf in (0x40000001, 0x40000101)
}
"""Bits that change with what a guest does (OSXSAVE, its APIC switched off, OSPKE); and what guests were shown, and have still,
before the policy was to show it to none."""

_NAMES = {
    (1, "ecx"): {0: "sse3", 1: "pclmulqdq", 5: "vmx", 9: "ssse3", 12: "fma", 13: "cx16", 17: "pcid", 19: "sse4_1"}
    | {20: "sse4_2", 21: "x2apic", 22: "movbe", 23: "popcnt", 24: "tsc_deadline_timer", 25: "aes", 26: "xsave"}
    | {28: "avx", 29: "f16c", 30: "rdrand"},
    (7, "ebx"): {0: "fsgsbase", 1: "tsc_adjust", 3: "bmi1", 5: "avx2", 7: "smep", 8: "bmi2", 9: "erms", 10: "invpcid"}
    | {16: "avx512f", 17: "avx512dq", 18: "rdseed", 19: "adx", 20: "smap", 21: "avx512ifma", 23: "clflushopt"}
    | {24: "clwb", 28: "avx512cd", 29: "sha_ni", 30: "avx512bw", 31: "avx512vl"},
    (7, "ecx"): {1: "avx512vbmi", 2: "umip", 3: "pku", 6: "avx512_vbmi2", 8: "gfni", 9: "vaes", 10: "vpclmulqdq"}
    | {11: "avx512_vnni", 12: "avx512_bitalg", 14: "avx512_vpopcntdq", 16: "la57", 22: "rdpid"},
    (7, "edx"): {4: "fsrm", 8: "avx512_vp2intersect", 22: "amx_bf16", 23: "avx512_fp16", 24: "amx_tile", 25: "amx_int8"}
    | {26: "spec_ctrl", 28: "flush_l1d", 29: "arch_capabilities", 31: "spec_ctrl_ssbd"},
    (0x80000001, "ecx"): {2: "svm", 5: "abm", 6: "sse4a", 8: "3dnowprefetch", 11: "xop", 16: "fma4"},
    (0x80000001, "edx"): {20: "nx", 26: "pdpe1gb", 27: "rdtscp", 29: "lm"},
    (0x80000007, "edx"): {8: "constant_tsc"},
    (0xD, "eax"): {2: "avx state", 5: "avx512 state", 9: "pku state", 17: "amx state", 18: "amx state"},
}


def missing(shown: Iterable[CpuidEntry], here: Iterable[CpuidEntry]) -> list[str]:
    """What of `shown` a guest of the same configuration does not see `here`: names of features, in order. Empty: it can go on."""
    host = {(e.function, e.index): e for e in here}
    lacking: dict[str, None] = {}
    for entry in shown:
        key = (entry.function, entry.index)
        there = host.get(key)
        if entry.function == 0 and there is not None and _vendor(entry) != _vendor(there):
            lacking[f"a processor of {_vendor(entry)}"] = None
        if entry.function == 0x80000008 and (there is None or entry.eax & 0xFF > there.eax & 0xFF):
            lacking[f"{entry.eax & 0xFF} bits of physical addresses"] = None
        for register in _FEATURES.get(key, ()):
            lost = getattr(entry, register) & ~(getattr(there, register) if there is not None else 0)
            lost &= ~_NOT_OF_THE_HOST.get((entry.function, register), 0)
            lacking |= {_name(key, register, bit): None for bit in range(32) if lost >> bit & 1}
    return list(lacking)


def _vendor(entry: CpuidEntry) -> str:
    return b"".join(word.to_bytes(4, "little") for word in (entry.ebx, entry.edx, entry.ecx)).decode("latin-1")


def _name(key: tuple[int, int], register: str, bit: int) -> str:
    function, index = key
    known = _NAMES.get((function, register), {}).get(bit) if function == 0xD or not index else None
    return known or f"CPUID {function:#x}.{index} {register.upper()} bit {bit}"
