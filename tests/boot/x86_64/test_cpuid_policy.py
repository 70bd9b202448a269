"""What a guest is shown of its host's processor beyond topology: brand, caches, frequency, and what it has to be allowed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aiovmm.boot.x86_64.cpuid import SIGNIFICANT_INDEX, CpuidEntry
from aiovmm.boot.x86_64.cpuid_missing import missing
from aiovmm.boot.x86_64.cpuid_policy import allow, has_amx, reachable_bits, tell_of_host, visible_bits
from tests.boot.x86_64.test_cpuid import AMD, INTEL, leaf

NAME = b"An Example Processor 9000 @ 3.00GHz".ljust(48, b"\0")
HOST = [
    *(
        CpuidEntry(0x80000002 + i, 0, 0, *(int.from_bytes(NAME[16 * i + 4 * j :][:4], "little") for j in range(4)))
        for i in range(3)
    ),
    CpuidEntry(0x80000005, ecx=0x20080140),
    CpuidEntry(0x80000006, ecx=0x02008140),
    CpuidEntry(0x80000007, edx=1 << 8),
]
TILE = [
    CpuidEntry(7, 0, SIGNIFICANT_INDEX, edx=1 << 22 | 1 << 24 | 1 << 25 | 1 << 4),
    CpuidEntry(7, 1, SIGNIFICANT_INDEX, eax=1 << 21 | 1 << 4, edx=1 << 8 | 1 << 4),
    CpuidEntry(0xD, 0, SIGNIFICANT_INDEX, eax=0x602E7, ebx=576, ecx=11008),
    CpuidEntry(0xD, 1, SIGNIFICANT_INDEX, eax=0x1F),
    CpuidEntry(0xD, 2, SIGNIFICANT_INDEX, eax=256, ebx=576),
    CpuidEntry(0xD, 9, SIGNIFICANT_INDEX, eax=8, ebx=2688),
    CpuidEntry(0xD, 12, SIGNIFICANT_INDEX, eax=24, ebx=0, ecx=1),
    CpuidEntry(0xD, 17, SIGNIFICANT_INDEX, eax=64, ebx=2752),
    CpuidEntry(0xD, 18, SIGNIFICANT_INDEX, eax=8192, ebx=2816),
    CpuidEntry(0x1D, 0, SIGNIFICANT_INDEX, eax=1),
    CpuidEntry(0x1E, 0, SIGNIFICANT_INDEX, ebx=0x4010),
]


def waiting(entries: list[CpuidEntry]) -> list[CpuidEntry]:
    """Of a guest whose vCPUs wait for pages: KVM's leaf without bits 4, 10 and 14."""
    return [replace(e, eax=e.eax & ~0x4410) if e.function == 0x40000001 else e for e in entries]


def test_no_guest_is_told_of_pages_that_are_still_to_come() -> None:
    """What a guest was told, and has not taken yet, is in no saved state."""
    offered = [CpuidEntry(0x40000000, eax=0x40000001), CpuidEntry(0x40000001, eax=0x0100_7EFB, edx=1)]
    for more in ({}, {"nested": True, "amx": True, "pmu": True}):
        told = allow([*offered, *TILE], **more)
        assert leaf(told, 0x40000001).eax == 0x0100_7EFB & ~0x4410
        assert leaf(told, 0x40000000) == offered[0]


def with_sizes(eax: int) -> list[CpuidEntry]:
    return [CpuidEntry(0x80000008, eax=eax)]


def brand(entries: list[CpuidEntry]) -> bytes:
    found = [leaf(entries, f) for f in (0x80000002, 0x80000003, 0x80000004)]
    return b"".join(r.to_bytes(4, "little") for e in found for r in (e.eax, e.ebx, e.ecx, e.edx))


@pytest.mark.parametrize("listed", [False, True])
def test_the_brand_is_the_hosts(listed: bool) -> None:
    """KVM lists the leaves with zeros, or not at all."""
    others = [e for e in INTEL if e.function != 0x80000002]
    empty = [CpuidEntry(0x80000002 + i) for i in range(3)] if listed else []
    assert brand(tell_of_host([*others, *empty], HOST)) == NAME


def test_caches_are_the_hosts_where_kvm_says_nothing() -> None:
    told = tell_of_host([CpuidEntry(0x80000005), CpuidEntry(0x80000006, ecx=7)], HOST)
    assert leaf(told, 0x80000005).ecx == 0x20080140
    assert leaf(told, 0x80000006).ecx == 7


def test_the_frequency_of_a_tsc_that_does_not_change() -> None:
    told = tell_of_host(INTEL, HOST, tsc_khz=2_500_000)
    assert (leaf(told, 0x40000010).eax, leaf(told, 0x40000010).ebx) == (2_500_000, 1_000_000)
    assert leaf(told, 0x40000000).eax == 0x40000010, "the highest leaf"
    for host, khz in ((HOST, None), ([e for e in HOST if e.function != 0x80000007], 1)):
        told = tell_of_host(INTEL, host, tsc_khz=khz)
        assert leaf(told, 0x40000000).eax == 0x40000001
        assert not [e for e in told if e.function == 0x40000010]


@pytest.mark.parametrize(
    ("eax", "cap", "visible", "reachable"),
    [
        (0x3927, None, 39, 39),
        (0x392E, None, 46, 46),
        (0x3934, None, 46, 46),
        (0x3934, 52, 52, 52),
        (48 << 16 | 0x3934, 52, 52, 48),  # a host of 52 bits that has four levels of EPT
        (48 << 16 | 0x3934, None, 46, 46),
        (40 << 16 | 0x3934, 44, 44, 40),
        (0x3927, 44, 39, 39),
    ],
)
def test_width_of_physical_addresses(eax: int, cap: int | None, visible: int, reachable: int) -> None:
    entries = with_sizes(eax)
    assert (visible_bits(entries, cap), reachable_bits(entries, cap)) == (visible, reachable)


def test_a_processor_that_does_not_tell_its_width() -> None:
    assert (visible_bits([], None), reachable_bits([], None)) == (36, 36)


def test_virtualization_unless_it_is_off() -> None:
    """Leaf 1 ECX bit 5 is VMX, leaf 0x80000001 ECX bit 2 SVM, and 0x8000000A tells of SVM."""
    host = [replace(e, ecx=e.ecx | 1 << 5) if e.function == 1 else e for e in AMD]
    host = [replace(e, ecx=e.ecx | 1 << 2) if e.function == 0x80000001 else e for e in host] + [
        CpuidEntry(0x8000000A, eax=1)
    ]
    assert allow(host, nested=True, pmu=True) == waiting(host)
    off = allow(host, pmu=True)
    assert leaf(off, 1).ecx == leaf(host, 1).ecx & ~(1 << 5)
    assert leaf(off, 0x80000001).ecx == leaf(host, 0x80000001).ecx & ~(1 << 2)
    assert not [e for e in off if e.function == 0x8000000A]


def test_performance_counters_unless_they_are_asked_for() -> None:
    """Leaf 1 ECX bit 15 is PDCM, leaf 0x80000001 ECX bits 23, 24 and 28 AMD's counters, leaf 7 EDX bit 19 branch records."""
    features = [CpuidEntry(1, ecx=1 << 15 | 1), CpuidEntry(7, edx=1 << 19 | 1), CpuidEntry(0x80000001, ecx=0x11800001)]
    leaves = [CpuidEntry(function, eax=2) for function in (0xA, 0x1C, 0x23, 0x80000022)]
    host = [*features, *leaves]
    assert allow(host, pmu=True) == host
    without = allow(host)
    assert {e.function for e in without} == {1, 7, 0x80000001}
    assert (leaf(without, 1).ecx, leaf(without, 7).edx, leaf(without, 0x80000001).ecx) == (1, 1, 1)


def test_amx_is_shown_to_who_asks_for_it() -> None:
    assert has_amx(TILE)
    assert allow(TILE, amx=True, nested=True, pmu=True) == TILE


def test_amx_is_not_shown_without_asking() -> None:
    without = allow(TILE)
    assert not has_amx(without)
    assert leaf(without, 7, 0).edx == 1 << 4
    assert (leaf(without, 7, 1).eax, leaf(without, 7, 1).edx) == (1 << 4, 1 << 4)
    assert leaf(without, 0xD, 0).eax == 0x2E7
    assert leaf(without, 0xD, 0).ecx == 2688 + 8, "the area ends with the last component that is left"
    assert {e.index for e in without if e.function == 0xD} == {0, 1, 2, 9, 12}
    assert not {e.function for e in without} & {0x1D, 0x1E}


def test_a_state_that_nobody_has_permission_for_is_no_amx() -> None:
    """KVM lists the instructions, and leaves the state out until the process has the permission."""
    assert not has_amx([replace(e, eax=0x2E7) if (e.function, e.index) == (0xD, 0) else e for e in TILE])


def test_a_host_without_amx_is_left_alone() -> None:
    assert allow(INTEL) == waiting(INTEL)


@pytest.mark.parametrize("leaf_of_kvm", [0x40000001, 0x40000101])
def test_a_guest_that_was_shown_pages_to_come_before_nobody_was_goes_on(leaf_of_kvm: int) -> None:
    """With the CPUID that it has. What else this host's KVM lacks is told as ever."""
    shown, here = CpuidEntry(leaf_of_kvm, eax=0x01007FFB), CpuidEntry(leaf_of_kvm, eax=0x01007FFB & ~0x4410)
    assert missing([shown], [here]) == []
    assert len(missing([shown], [replace(here, eax=here.eax & ~1)])) == 1


@pytest.mark.parametrize("there", [[], [CpuidEntry(0x80000007, edx=0x11)], [CpuidEntry(0x80000007, edx=0x100)]])
def test_an_invariant_counter_is_shown_to_who_asks_for_it(there: list[CpuidEntry]) -> None:
    before = there[0].edx if there else 0
    shown = [e for e in allow([CpuidEntry(1), *there], invtsc=True) if e.function == 0x80000007]
    assert [e.edx for e in shown] == [before | 0x100]
    assert [e for e in allow([CpuidEntry(1), *there]) if e.function == 0x80000007] == there
