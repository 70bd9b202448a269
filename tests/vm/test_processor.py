"""What vCPUs are told of the processor, through KVM of this machine."""

from __future__ import annotations

import pytest

from aiovmm import VM, CpusConfig, PlatformConfig
from aiovmm.errors import ConfigError, KvmError
from aiovmm.kvm import Kvm
from aiovmm.kvm.x86_64.cpuid import CpuidEntry, get_supported, of_host, unpack
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from tests.vm.guest import config

Told = dict[int, CpuidEntry]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the last vCPU was told, by leaf; the first sub-leaf of each."""
    found: Told = {}
    original = VcpuState.set_packed_cpuid

    def set_cpuid(self: VcpuState, packed: bytes) -> None:
        found.clear()
        for entry in reversed(unpack(packed)):
            found[entry.function] = entry
        original(self, packed)

    monkeypatch.setattr(VcpuState, "set_packed_cpuid", set_cpuid)
    return found


def registers(entry: CpuidEntry) -> tuple[int, int, int, int]:
    return entry.eax, entry.ebx, entry.ecx, entry.edx


async def test_the_brand_is_that_of_the_host(told: Told) -> None:
    host = of_host((0x80000002, 0x80000003, 0x80000004))
    async with VM(config("i")):
        assert [registers(told[e.function]) for e in host] == [registers(e) for e in host]
    assert any(registers(e) != (0, 0, 0, 0) for e in host)


async def test_nobody_is_told_of_pages_that_are_still_to_come(told: Told) -> None:
    async with VM(config("i")):
        assert told[0x40000001].eax & 0x4410 == 0
        assert told[0x40000001].eax & 8, "the rest is there: its clock"


async def test_addresses_are_no_wider_than_asked(told: Told) -> None:
    async with VM(config("i")):
        host = told[0x80000008].eax & 0xFF
        assert host <= 46
    cpus = CpusConfig(max_phys_bits=36)
    async with VM(config("i").with_changes({"cpus": cpus, "platform": PlatformConfig(num_pci_segments=2)})) as vm:
        assert told[0x80000008].eax & 0xFF == min(host, 36)
        ends = [s.plan.mmio64.base + s.plan.mmio64.size for s in vm.machine.pci.root.segments]
        assert max(ends) <= 1 << 36, "the second segment's window is in reach"


async def test_virtualization_and_counters_are_off(told: Told) -> None:
    async with VM(config("i")):
        assert 0xA not in told or told[0xA].eax & 0xFF == 0
        assert told[1].ecx >> 15 & 1 == 0
        assert told[1].ecx >> 5 & 1 == 0
        assert 0x80000001 not in told or told[0x80000001].ecx >> 2 & 1 == 0


async def test_amx_where_there_is_none_is_refused() -> None:
    with Kvm.open() as kvm:
        if any(e.function == 7 and e.index == 0 and e.edx >> 24 & 1 for e in get_supported(kvm.fd)):
            pytest.skip("this host has AMX")
    with pytest.raises((KvmError, ConfigError), match="features=amx"):
        async with VM(config("i").with_changes({"cpus": CpusConfig(features=("amx",))})):
            pass


async def test_the_frequency_leaf_is_named_by_the_signature(told: Told) -> None:
    async with VM(config("i")):
        assert (0x40000010 in told) == (told[0x40000000].eax == 0x40000010)
        if 0x40000010 in told:
            assert told[0x40000010].ebx == 1_000_000
