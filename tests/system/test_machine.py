"""What a stock kernel finds of the machine that was described: SMBIOS, processors, NUMA nodes, pvpanic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aiovmm import (
    VM,
    CpusConfig,
    EventKind,
    ExitReason,
    MemoryConfig,
    PlatformConfig,
    PvpanicConfig,
)
from aiovmm.config import TopologyConfig
from aiovmm.config.options import parse_memory_zone, parse_numa
from tests.system.conftest import RELEASES, Guests
from tests.system.guest import ended, prompt, shell

IDENTITY = PlatformConfig(
    system_manufacturer="Maker",
    system_product_name="Product",
    system_serial_number="ds=nocloud",
    system_uuid="7a1e3f0a-5c53-4f0e-9f3b-0d3c8d1f2a11",
    chassis_asset_tag="tag",
    oem_strings=("io.systemd.credential:motd=hello",),
)
EACH = [RELEASES[0], *(pytest.param(name, marks=pytest.mark.thorough) for name in RELEASES[1:])]


@pytest.mark.parametrize("release", EACH)
async def test_a_kernel_finds_the_machine_that_was_described(guests: Guests, release: str) -> None:
    """Four processors of two threads in two packages, each a node with half of the memory."""
    config = replace(
        guests.config(release),
        memory=MemoryConfig(0),
        memory_zones=(parse_memory_zone("id=a,size=128M"), parse_memory_zone("id=b,size=128M,shared=on")),
        numa=(
            parse_numa("guest_numa_id=0,cpus=[0-1],memory_zones=a,distances=[1@30]"),
            parse_numa("guest_numa_id=1,cpus=[2-3],memory_zones=b"),
        ),
        cpus=CpusConfig(4, topology=TopologyConfig(threads=2, cores=1, dies=1, packages=2)),
        platform=IDENTITY,
    )
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        names = "sys_vendor product_name product_serial product_uuid chassis_asset_tag"
        told = await shell(vm, f"cd /sys/class/dmi/id && cat {names}")
        assert told.split("\n")[:5] == ["Maker", "Product", "ds=nocloud", IDENTITY.system_uuid, "tag"]
        assert "1" in await shell(vm, "grep -c io.systemd.credential:motd=hello /sys/firmware/dmi/tables/DMI")
        cpus = await shell(vm, "cd /sys/devices/system/cpu && cat cpu?/topology/physical_package_id")
        assert cpus.split() == ["0", "0", "1", "1"]
        assert (await shell(vm, "cat /sys/devices/system/cpu/cpu0/topology/thread_siblings_list")).split() == ["0-1"]
        nodes = await shell(vm, "cd /sys/devices/system/node && cat node0/cpulist node1/cpulist node?/distance")
        assert nodes.split("\n")[:4] == ["0-1", "2-3", "10 30", "30 10"]
        sizes = await shell(vm, "grep -h MemTotal /sys/devices/system/node/node?/meminfo")
        assert all(80 << 10 < int(line.split()[3]) <= 128 << 10 for line in sizes.splitlines())


@pytest.mark.timeout(900)
async def test_as_many_processors_are_there_as_were_asked_for(guests: Guests) -> None:
    """64: two threads a core, in two packages, by the x2APIC. With 128 no guest starts in the nested host, QEMU's neither: one of
    the processors ends in a triple fault."""
    cpus = CpusConfig(64, topology=TopologyConfig(threads=2, cores=16, dies=1, packages=2))
    async with VM(replace(guests.config("6.1", memory=1024), cpus=cpus)) as vm:
        await vm.start()
        await prompt(vm, timeout=600)
        assert (await shell(vm, "cat /sys/devices/system/cpu/online", timeout=300)).strip() == "0-63"
        told = "cat /sys/devices/system/cpu/cpu*/topology"
        packages = await shell(vm, f"{told}/physical_package_id | sort | uniq -c", timeout=300)
        assert packages.split() == ["32", "0", "32", "1"]
        assert int(await shell(vm, f"{told}/thread_siblings_list | sort -u | wc -l", timeout=300)) == 32
        assert "x2apic" in await shell(vm, "dmesg | grep 'APIC routing'", timeout=300)


@pytest.mark.parametrize("release", EACH)
async def test_a_kernel_says_itself_that_it_panics(guests: Guests, release: str) -> None:
    async with VM(replace(guests.config(release), pvpanic=PvpanicConfig())) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, "modprobe pvpanic-pci && grep -q pvpanic /proc/modules")
        vm.serial.write(b"echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger\n")
        status = await ended(vm)
        told = [event.detail async for event in vm.events(from_start=True) if event.kind is EventKind.PANICKED]
    assert told == ["reported by pvpanic"]
    assert status.reason is ExitReason.PANIC
