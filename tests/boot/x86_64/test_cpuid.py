"""Topology as Linux and `lscpu` would decode it, on Intel and AMD hosts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiovmm.boot.x86_64.cpuid import SIGNIFICANT_INDEX, CpuidEntry, CpuTopology, adjust, apic_id
from aiovmm.errors import UsageError


def vendor(name: bytes, highest: int) -> CpuidEntry:
    ebx, edx, ecx = (int.from_bytes(name[i : i + 4], "little") for i in (0, 4, 8))
    return CpuidEntry(0, eax=highest, ebx=ebx, ecx=ecx, edx=edx)


def cache(function: int, index: int, level: int) -> CpuidEntry:
    host_sharing = 63 << 14 | 31 << 26 if function == 4 else 63 << 14
    return CpuidEntry(function, index, SIGNIFICANT_INDEX, eax=1 | level << 5 | host_sharing, ebx=0x1C0003F, ecx=0x3F)


COMMON = [
    CpuidEntry(1, eax=0x806F8, ebx=0x55_40_08_00, ecx=0x76FA3203, edx=0x0F8BFBFF),
    CpuidEntry(7, 0, SIGNIFICANT_INDEX, ebx=0xF1BF07AB),
    CpuidEntry(0x40000000, eax=0x40000001, ebx=0x4B4D564B, ecx=0x564B4D56, edx=0x4D),
    CpuidEntry(0x40000001, eax=0x01007EFB),
    CpuidEntry(0x80000002, eax=0x65746E49, ebx=0x2952286C),
    CpuidEntry(0x80000008, eax=0x3934, ecx=0),
]
INTEL = [
    vendor(b"GenuineIntel", 0x1F),
    *COMMON,
    *(cache(4, i, level) for i, level in enumerate((1, 1, 2, 3))),
    CpuidEntry(4, 4, SIGNIFICANT_INDEX),
    CpuidEntry(0xB, 0, SIGNIFICANT_INDEX, eax=1, ebx=2, ecx=0x100, edx=0x55),
    CpuidEntry(0xB, 1, SIGNIFICANT_INDEX, eax=7, ebx=64, ecx=0x201, edx=0x55),
    CpuidEntry(0x1F, 0, SIGNIFICANT_INDEX, eax=1, ebx=2, ecx=0x100, edx=0x55),
    CpuidEntry(0x80000001, ecx=0x121, edx=0x2C100800),
]
AMD = [
    vendor(b"AuthenticAMD", 0x10),
    *COMMON,
    CpuidEntry(0x80000001, ecx=0x00C003F3, edx=0x2FD3FBFF),
    *(cache(0x8000001D, i, level) for i, level in enumerate((1, 1, 2, 3))),
    CpuidEntry(0x8000001E, eax=0x55, ebx=0x101, ecx=0x300),
]
HOSTS = {"intel": INTEL, "amd": AMD}
HOST_ENTRIES = st.sampled_from(list(HOSTS.values()))
TOPOLOGIES = st.builds(CpuTopology, st.integers(1, 3), st.integers(1, 9), st.integers(1, 2), st.integers(1, 3))


def leaf(entries: list[CpuidEntry], function: int, index: int = 0) -> CpuidEntry:
    found = [e for e in entries if e.function == function and (e.index == index or not e.flags & SIGNIFICANT_INDEX)]
    assert len(found) == 1, f"leaf {function:#x}.{index} answered {len(found)} times"
    return found[0]


@pytest.mark.parametrize("host", HOSTS)
def test_what_a_kernel_looks_for_in_a_guest(host: str) -> None:
    entries = adjust(HOSTS[host], 0, 1)
    assert leaf(entries, 1).ecx >> 31, "hypervisor bit: without it no kvm-clock"
    assert leaf(entries, 1).ecx >> 24 & 1, "TSC deadline timer"
    assert leaf(entries, 1).ecx >> 21 & 1, "x2APIC"
    assert leaf(entries, 1).edx >> 12 & 1, "MTRRs"
    assert leaf(entries, 0x40000000).ebx == 0x4B4D564B, "KVMKVMKVM"
    assert leaf(entries, 0x40000001).eax == 0x01007EFB
    assert leaf(entries, 0x80000002).eax == 0x65746E49, "the brand string is the host's"
    assert leaf(entries, 7).ebx == 0xF1BF07AB
    assert leaf(entries, 1).edx >> 28 & 1 == 0, "one processor: no HTT"


def test_host_without_the_deadline_timer() -> None:
    assert leaf(adjust(INTEL, 0, 1, tsc_deadline=False), 1).ecx >> 24 & 1 == 0


@given(HOST_ENTRIES, TOPOLOGIES)
@example(INTEL, CpuTopology(1, 127, 2))
@example(AMD, CpuTopology(1, 127, 2))
@example(INTEL, CpuTopology(254))
@example(AMD, CpuTopology(2, 127))
def test_apic_ids_are_distinct_and_the_same_in_every_leaf(host: list[CpuidEntry], topology: CpuTopology) -> None:
    seen = set()
    for cpu in range(topology.cpus):
        entries = adjust(host, cpu, topology.cpus, topology=topology)
        own = leaf(entries, 0xB, 0).edx
        assert own == apic_id(topology, cpu)
        assert leaf(entries, 1).ebx >> 24 == own & 0xFF
        assert {e.edx for e in entries if e.function in (0xB, 0x1F)} == {own}
        if host is AMD:
            assert leaf(entries, 0x8000001E).eax == own
        seen.add(own)
    assert len(seen) == topology.cpus


@given(HOST_ENTRIES, TOPOLOGIES)
@example(INTEL, CpuTopology(1, 127, 2))
@example(AMD, CpuTopology(1, 127, 2))
@example(INTEL, CpuTopology(254))
@example(AMD, CpuTopology(2, 127))
def test_leaf_0xb_places_each_processor_where_the_topology_says(host: list[CpuidEntry], topology: CpuTopology) -> None:
    """Decoded as Intel SDM vol. 3A, 9.9.4 tells software to."""
    for cpu in range(topology.cpus):
        entries = adjust(host, cpu, topology.cpus, topology=topology)
        smt, core, end = (leaf(entries, 0xB, i) for i in range(3))
        assert (smt.ecx >> 8, core.ecx >> 8, end.ecx >> 8) == (1, 2, 0)
        assert [e.ecx & 0xFF for e in (smt, core, end)] == [0, 1, 2]
        assert (smt.ebx, core.ebx) == (topology.threads, topology.logical)
        x2apic = core.edx
        thread = x2apic & (1 << smt.eax) - 1
        core_number = x2apic >> smt.eax & (1 << core.eax - smt.eax) - 1
        socket = x2apic >> core.eax
        if topology.dies == 1:
            assert cpu == (socket * topology.cores + core_number) * topology.threads + thread
        assert cpu // topology.logical == socket


@given(HOST_ENTRIES, TOPOLOGIES.filter(lambda topology: topology.dies > 1))
def test_leaf_0x1f_has_the_dies(host: list[CpuidEntry], topology: CpuTopology) -> None:
    """On every host, for it is the only leaf that tells of them; the highest leaf reaches it."""
    for cpu in range(topology.cpus):
        entries = adjust(host, cpu, topology.cpus, topology=topology)
        assert leaf(entries, 0).eax == 0x1F
        smt, core, die, end = (leaf(entries, 0x1F, i) for i in range(4))
        assert [e.ecx for e in (smt, core, die, end)] == [0x100, 0x201, 0x502, 0x003]
        assert (smt.ebx, core.ebx, die.ebx) == (topology.threads, topology.cores * topology.threads, topology.logical)
        x2apic = die.edx
        thread = x2apic & (1 << smt.eax) - 1
        core_number = x2apic >> smt.eax & (1 << core.eax - smt.eax) - 1
        die_number = x2apic >> core.eax & (1 << die.eax - core.eax) - 1
        socket = x2apic >> die.eax
        place = (socket * topology.dies + die_number) * topology.cores + core_number
        assert cpu == place * topology.threads + thread


def test_leaves_are_the_hosts_where_there_is_one_die() -> None:
    assert leaf(adjust(AMD, 0, 4), 0).eax == 0x10
    assert not [e for e in adjust(AMD, 0, 4) if e.function == 0x1F]
    assert [e.ecx for e in adjust(INTEL, 0, 4) if e.function == 0x1F] == [0x100, 0x201, 0x002]


@given(TOPOLOGIES)
@example(CpuTopology(1, 127, 2))
@example(CpuTopology(1, 254))
@example(CpuTopology(254))
def test_intel_caches_are_shared_by_whom_the_topology_says(topology: CpuTopology) -> None:
    entries = adjust(INTEL, 0, topology.cpus, topology=topology)
    threads, die, logical = (1 << n for n in (topology.thread_bits, topology.die_shift, topology.package_shift))
    for index, expected in enumerate((threads, threads, threads, die)):
        e = leaf(entries, 4, index)
        assert (e.eax >> 14 & 0xFFF) + 1 == expected
        assert (e.eax >> 26) + 1 == min(logical // threads, 64), "more cores than 6 bits can say"
        assert e.eax & 0x3FFF == leaf(INTEL, 4, index).eax & 0x3FFF, "type and level are the host's"
    assert leaf(entries, 4, 4).eax == 0, "the entry that ends the list"


@given(TOPOLOGIES)
@example(CpuTopology(1, 127, 2))
@example(CpuTopology(1, 254))
@example(CpuTopology(254))
def test_amd_leaves(topology: CpuTopology) -> None:
    entries = adjust(AMD, topology.cpus - 1, topology.cpus, topology=topology)
    sizes = leaf(entries, 0x80000008)
    assert (sizes.ecx & 0xFF) + 1 == topology.logical
    assert 1 << (sizes.ecx >> 12 & 0xF) >= topology.logical
    assert leaf(entries, 0x80000001).ecx >> 1 & 1 == (topology.logical > 1), "CmpLegacy"
    node = leaf(entries, 0x8000001E)
    assert (node.ebx >> 8 & 0xFF) + 1 == topology.threads
    last_die = (topology.sockets - 1 << topology.package_shift - topology.die_shift) + topology.dies - 1
    assert node.ecx & 0xFF == last_die, "one node a die, and this is the last"
    assert node.ecx >> 8 & 7 == topology.dies - 1
    assert (leaf(entries, 0x8000001D, 3).eax >> 14 & 0xFFF) + 1 == 1 << topology.die_shift


@pytest.mark.parametrize(("cpus", "htt", "count"), [(1, 0, 1), (2, 1, 2), (3, 1, 4), (4, 1, 4), (64, 1, 64)])
def test_number_of_logical_processors(cpus: int, htt: int, count: int) -> None:
    e = leaf(adjust(INTEL, 0, cpus), 1)
    assert e.edx >> 28 & 1 == htt
    assert e.ebx >> 16 & 0xFF == count
    assert e.ebx >> 8 & 0xFF == 8, "CLFLUSH line size is the host's"


def test_one_socket_of_single_threaded_cores_numbers_its_apics_plainly() -> None:
    assert [apic_id(CpuTopology(cores=5), cpu) for cpu in range(5)] == [0, 1, 2, 3, 4]


def test_paging_that_is_narrower_than_the_processor() -> None:
    wide = [replace(e, eax=48 << 16 | 0x3934) if e.function == 0x80000008 else e for e in INTEL]
    assert leaf(adjust(wide, 0, 1, phys_bits=50), 0x80000008).eax == 48 << 16 | 0x3932
    assert leaf(adjust(wide, 0, 1, phys_bits=46), 0x80000008).eax == 46 << 16 | 0x392E


def test_physical_address_width() -> None:
    assert leaf(adjust(INTEL, 0, 1), 0x80000008).eax == 0x3934
    assert leaf(adjust(INTEL, 0, 1, phys_bits=40), 0x80000008).eax == 0x3928


def test_amd_host_whose_kvm_does_not_name_the_topology_extensions() -> None:
    """Its leaves are there, so the guest is told that they are; without them nothing may say so."""
    host = [replace(e, ecx=e.ecx & ~(1 << 22)) if e.function == 0x80000001 else e for e in AMD]
    entries = adjust(host, 0, 1)
    assert leaf(entries, 0x80000001).ecx >> 22 & 1
    assert leaf(entries, 0x8000001E).eax == 0
    for absent in (0x8000001D, 0x8000001E):
        entries = adjust([e for e in AMD if e.function != absent], 0, 1)
        assert leaf(entries, 0x80000001).ecx >> 22 & 1 == 0
        assert not [e for e in entries if e.function == 0x8000001E]


def test_old_host_without_leaf_0xb_gets_none() -> None:
    host = [vendor(b"AuthenticAMD", 0x6), *AMD[1:]]
    assert not [e for e in adjust(host, 0, 4) if e.function in (0xB, 0x1F)]


@given(HOST_ENTRIES, TOPOLOGIES)
def test_no_question_has_two_answers(host: list[CpuidEntry], topology: CpuTopology) -> None:
    entries = adjust(host, 0, topology.cpus, topology=topology)
    assert len({(e.function, e.index) for e in entries}) == len(entries)


def test_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="does not fit"):
        adjust(INTEL, 0, 5, topology=CpuTopology(cores=4))
    with pytest.raises(UsageError, match="does not fit"):
        adjust(INTEL, 4, 4)
    with pytest.raises(UsageError, match="at least one"):
        CpuTopology(cores=0)
