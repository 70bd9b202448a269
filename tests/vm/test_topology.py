"""How the guest's processors are numbered: local APICs, firmware tables and CPUID say the same."""

from __future__ import annotations

from dataclasses import replace

from aiovmm import VM, CpusConfig
from aiovmm.boot.x86_64.cpuid import apic_id
from aiovmm.config import TopologyConfig
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.machine.x86_64.vcpus import topology_of
from tests.vm.guest import config


async def test_a_topology_decides_on_apic_ids() -> None:
    """Three cores need two bits: the second package begins at 4."""
    cpus = CpusConfig(boot=6, topology=TopologyConfig(threads=1, cores=3, dies=1, packages=2))
    async with VM(replace(config("s"), cpus=cpus)) as vm:
        ids = [
            int.from_bytes(VcpuState(vcpu).get_state("lapic")[0x20:0x24], "little") >> 24 for vcpu in vm.machine.vcpus
        ]
    assert ids == [0, 1, 2, 4, 5, 6]
    assert ids == [apic_id(topology_of(cpus), index) for index in range(6)]


async def test_dies_are_what_the_guest_sees() -> None:
    """Three cores need two bits, and the second die begins at 4."""
    cpus = CpusConfig(boot=6, topology=TopologyConfig(threads=1, cores=3, dies=2, packages=1))
    async with VM(replace(config("s"), cpus=cpus)) as vm:
        ids = [
            int.from_bytes(VcpuState(vcpu).get_state("lapic")[0x20:0x24], "little") >> 24 for vcpu in vm.machine.vcpus
        ]
    assert ids == [0, 1, 2, 4, 5, 6]
    assert topology_of(cpus).dies == 2


async def test_a_guest_without_acpi_finds_its_processors() -> None:
    """Scanned for as Linux does, in the BIOS area; the table is tests/boot/x86_64/test_mptable.py's."""
    async with VM(replace(config("s"), cpus=CpusConfig(boot=2, max=3))) as vm:
        bios = vm.machine.memory.read(0xF0000, 0x10000)
    found = [
        at for at in range(0, len(bios), 16) if bios[at : at + 4] == b"_MP_" and sum(bios[at : at + 16]) % 256 == 0
    ]
    assert len(found) == 1
    table = int.from_bytes(bios[found[0] + 4 : found[0] + 8], "little") - 0xF0000
    entries = [bios[table + 44 + 20 * n :][:4] for n in range(3)]
    assert [(entry[0], entry[1]) for entry in entries[:2]] == [(0, 0), (0, 1)]
    assert entries[2][0] == 1, "buses come after the two that are there"
