"""RAM in zones, and what it is made of: as the host's kernel tells of the mappings, and the firmware's tables of the nodes."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm import (
    VM,
    ConfigError,
    HostError,
    HotplugMethod,
    MemoryConfig,
    MemoryZoneConfig,
    NumaConfig,
    PlatformConfig,
    RngConfig,
    UsageError,
    VMConfig,
)
from aiovmm.boot.x86_64 import ram_ranges
from aiovmm.config.options import parse_cpus, parse_memory, parse_memory_zone, parse_numa
from aiovmm.devices.virtio.mem import MemDevice
from aiovmm.devices.virtio.mem.protocol import ACPI_PXM
from aiovmm.machine.zones import places_of_zones
from aiovmm.memory import Backing, GuestMemory
from aiovmm.native import lib
from tests.boot.x86_64.acpi.test_numa import entries, read
from tests.vm.guest import config

MIB = 1 << 20


def zoned(*texts: str, does: str = "s", **changes: Any) -> VMConfig:
    zones = tuple(parse_memory_zone(text) for text in texts)
    return replace(config(does), memory=MemoryConfig(0), memory_zones=zones, **changes)


def flags_of(host: int) -> tuple[str, set[str]]:
    """The file behind an address of ours, and VmFlags (proc(5))."""
    path, inside = "", False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)", line):
            inside = int(match[1], 16) <= host < int(match[2], 16)
            path = match[3]
        elif inside and line.startswith("VmFlags:"):
            return path, set(line.split()[1:])
    raise AssertionError(f"nothing at {host:#x}")


async def test_zones_follow_each_other_and_the_guest_runs_in_them() -> None:
    async with VM(zoned("id=a,size=2M", "id=b,size=4M,shared=on", does="ho")) as vm:
        regions = [(r.gpa, r.size, r.shared) for r in vm.machine.memory.regions]
        assert regions == [(0, 2 * MIB, False), (2 * MIB, 4 * MIB, True)]
        assert vm.machine.memory.size == vm.config.ram_size == 6 * MIB
        await vm.start()
        await vm.serial.expect(b"hello")
        assert (await vm.wait()).ok


async def test_zones_are_made_as_the_memory_says_where_they_do_not() -> None:
    zones = zoned("id=a,size=2M", "id=b,size=2M,shared=off,prefault=off")
    whole = replace(zones, memory=parse_memory("size=0,shared=on,prefault=on"))
    async with VM(whole) as vm:
        first, second = vm.machine.memory.regions
        assert (first.shared, second.shared) == (True, False)
        assert lib.avmm_mem_resident(first.host, first.size) == 2 * MIB
        assert lib.avmm_mem_resident(second.host, second.size) < 2 * MIB


async def test_a_file_is_the_memory_and_keeps_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(bytes(4 * MIB))
    async with VM(zoned(f"id=a,size=4M,file={tmp_path / 'ram'},shared=on")) as vm:
        vm.machine.memory.write(0x300000, b"kept")
        with pytest.raises(ConfigError, match=r"memory_zone\.file: .* is in use"):
            async with VM(zoned(f"id=a,size=4M,file={tmp_path / 'ram'},shared=on")):
                pass
    with (tmp_path / "ram").open("rb") as file:
        file.seek(0x300000)
        assert file.read(4) == b"kept"


async def test_a_directory_has_a_file_without_a_name(tmp_path: Path) -> None:
    async with VM(zoned(f"id=a,size=4M,file={tmp_path}")) as vm:
        path, _ = flags_of(vm.machine.memory.regions[0].host)
        assert path.startswith(str(tmp_path))
        assert path.endswith("(deleted)")
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("private", ["shared=off", "shared=off,reserve=on"])
async def test_a_file_that_is_not_shared_is_left_as_it_is(tmp_path: Path, private: str) -> None:
    (tmp_path / "ram").write_bytes(b"x" * (4 * MIB))
    async with VM(zoned(f"id=a,size=4M,file={tmp_path / 'ram'},{private}")) as vm:
        assert vm.machine.memory.read(0x300000, 4) == b"xxxx"
        vm.machine.memory.write(0x300000, b"gone")
    assert (tmp_path / "ram").read_bytes() == b"x" * (4 * MIB)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id=a,size=8M,file={}/small", r"small has 4096 bytes, and the zone 8388608 \(truncate -s"),
        ("id=a,size=8M,file={}/none", r"opening the file of a memory zone"),
        ("id=a,size=8M,host_numa_node=1000", r"binding memory to node 1000: .*numactl -H"),
        ("id=a,size=8M,hugepages=on,hugepage_size=16G", r"not a multiple of a huge page, 16384M"),
        ("id=a,size=8M,hugepage_size=2M", r"hugepage_size: is given without hugepages=on"),
        ("id=a,size=8M,hugepages=on,hugepage_size=3M", r"3145728 is no size of huge pages"),
        ("id=a,size=8M,hugepages=on,file={}", r"does not go with file="),
        ("id=a,size=1000", r"1000 bytes are not a number of pages"),
        ("id=a,size=0", r"0 bytes are not a number of pages"),
        ("size=8M", r"memory-zone.id: is missing"),
        ("id=a,size=8M,hotplug_size=8M", r"not a multiple of 128M"),
        ("id=a,size=1M", r"1048576 bytes are too few"),
    ],
)
async def test_what_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "small").write_bytes(bytes(4096))
    with pytest.raises((ConfigError, HostError), match=message):
        async with VM(zoned(text.format(tmp_path))):
            pass


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ("size=4M", r"memory.size: is not 0, and there are zones"),
        ("size=0,hotplug_size=128M", r"memory.hotplug_size: is for memory without zones"),
    ],
)
def test_memory_beside_zones_is_refused(memory: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(zoned("id=a,size=4M"), memory=parse_memory(memory))


def test_no_memory_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"memory.size: 0 bytes are too few \(give at least 2M, or zones"):
        replace(config("s"), memory=MemoryConfig(0))


def bound(node: int) -> list[str]:
    """The mappings of ours that may come from one node alone."""
    if not Path("/proc/self/numa_maps").exists():
        pytest.skip("the host's kernel has no NUMA")
    return [line for line in Path("/proc/self/numa_maps").read_text().splitlines() if f"bind:{node}" in line]


async def test_a_zone_comes_from_the_node_that_is_asked_for() -> None:
    before = len(bound(0))
    async with VM(zoned("id=a,size=4M,host_numa_node=0,prefault=on")):
        assert len(bound(0)) == before + 1
    async with VM(zoned("id=a,size=4M")):
        assert len(bound(0)) == before


@pytest.mark.parametrize("reserve", [False, True])
def test_reserved_memory_is_accounted_for(reserve: bool) -> None:
    memory = GuestMemory.create([(0, 8 * MIB)], shared=False, reserve=reserve)
    _, flags = flags_of(memory.regions[0].host)
    assert ("nr" in flags, "ac" in flags) == (not reserve, reserve)
    memory.close()


def test_shared_memory_that_is_reserved_is_there() -> None:
    memory = GuestMemory.create([(0, 8 * MIB)], shared=True, reserve=True)
    assert os.fstat(memory.regions[0].fd).st_blocks * 512 >= 8 * MIB
    memory.close()


def test_a_size_of_huge_pages_that_the_host_has_none_of_is_an_error_with_a_hint() -> None:
    with pytest.raises(HostError, match="nr_hugepages"):
        GuestMemory.create([(0, 1 << 30)], hugepages=True, hugepage_size=1 << 30)


def test_prefaulting_in_pieces_by_several_threads_touches_every_page() -> None:
    memory = GuestMemory.create([(0, 700 * MIB)], shared=False, prefault=True)
    region = memory.regions[0]
    resident = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/self/smaps").read_text().split(f"{region.mapping.host:x}-")[1].splitlines()
        if line.startswith("Rss:")
    )
    memory.close()
    assert resident >= 700 * MIB


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=12))
def test_zones_fill_ram_in_their_order_and_without_gaps(sizes: list[int]) -> None:
    zones = tuple(MemoryZoneConfig(id=f"z{n}", size=size * MIB) for n, size in enumerate(sizes, 2))
    whole = replace(
        config("s"), memory=MemoryConfig(0), memory_zones=(MemoryZoneConfig(id="first", size=2 * MIB), *zones)
    )
    ram = ram_ranges(whole.ram_size)
    places = places_of_zones(whole, ram)
    assert list(places) == [zone.id for zone in whole.memory_zones]
    assert {name: sum(size for _, size in pieces) for name, pieces in places.items()} == {
        zone.id: zone.size for zone in whole.memory_zones
    }
    joined: list[list[int]] = []
    for gpa, size in (piece for pieces in places.values() for piece in pieces):
        if joined and joined[-1][0] + joined[-1][1] == gpa:
            joined[-1][1] += size
        else:
            joined.append([gpa, size])
    assert [tuple(piece) for piece in joined] == ram


# -- zones that grow

GROWING = (
    "id=a,size=2M,hotplug_size=128M",
    "id=b,size=2M",
    "id=c,size=2M,shared=on,hotplug_size=256M,hotplugged_size=64M",
)


def growing(**changes: Any) -> VMConfig:
    memory = parse_memory("size=0,hotplug_method=virtio-mem")
    return replace(config("s"), memory=memory, memory_zones=tuple(map(parse_memory_zone, GROWING)), **changes)


async def test_each_zone_that_grows_has_a_device_and_a_place_of_its_own() -> None:
    numa = (parse_numa("guest_numa_id=3,memory_zones=c"), parse_numa("guest_numa_id=1,memory_zones=b"))
    async with VM(growing(numa=numa)) as vm:
        regions = [(region.gpa, region.size, region.shared) for region in vm.machine.memory.regions]
        assert regions[3:] == [(4 << 30, 128 * MIB, False), (5 << 30, 256 * MIB, True)]
        a, c = vm.device("mem-a", MemDevice), vm.device("mem-c", MemDevice)
        assert [device.blocks.start for device in (a, c)] == [4 << 30, 5 << 30]
        assert [device.blocks.requested for device in (a, c)] == [0, 64 * MIB]
        for device, node in ((a, 1), (c, 3)):
            assert device.features & ACPI_PXM
            assert device.read_config(8, 2) == node.to_bytes(2, "little")


async def test_what_comes_to_a_zone_with_a_file_is_not_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "zone"
    file.write_bytes(bytes(2 * MIB))
    zone = parse_memory_zone(f"id=a,size=2M,file={file},shared=on,hotplug_size=128M,hotplugged_size=128M")
    async with VM(replace(growing(), memory_zones=(zone,))) as vm:
        regions = [(region.gpa, region.size, region.shared) for region in vm.machine.memory.regions]
        assert regions == [(0, 2 * MIB, True), (4 << 30, 128 * MIB, True)]
        vm.machine.memory.write(MIB, b"in the file")
        vm.machine.memory.write(4 << 30, b"beside it")
    data = file.read_bytes()
    assert len(data) == 2 * MIB
    assert data[MIB : MIB + 11] == b"in the file"
    assert b"beside it" not in data


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_zone_may_have_nothing_but_what_comes(at: int, tmp_path: Path) -> None:
    zones = [parse_memory_zone(text) for text in ("id=a,size=2M", "id=b,size=4M")]
    zones.insert(at, parse_memory_zone("id=hot,size=0,hotplug_size=128M,mergeable=on"))
    numa = (parse_numa("guest_numa_id=0,memory_zones=[a,b]"), parse_numa("guest_numa_id=1,memory_zones=hot"))
    async with VM(replace(growing(), numa=numa, memory_zones=tuple(zones))) as vm:
        regions = [(region.gpa, region.size) for region in vm.machine.memory.regions]
        assert regions == [(0, 2 * MIB), (2 * MIB, 4 * MIB), (4 << 30, 128 * MIB)]
        await vm.start()
        await vm.resize(memory=64 * MIB, zone="hot", timeout=0)
        assert vm.device("mem-hot", MemDevice).blocks.requested == 64 * MIB
        await vm.snapshot(tmp_path / "s")
    async with VM.restore(tmp_path / "s") as again:
        assert again.device("mem-hot", MemDevice).blocks.requested == 64 * MIB


async def test_a_zone_is_resized_by_its_name(tmp_path: Path) -> None:
    async with VM(growing()) as vm:
        await vm.start()
        c = vm.device("mem-c", MemDevice)
        assert not c.features & ACPI_PXM
        await vm.resize(memory=(2 + 128) * MIB, zone="c", timeout=0)
        assert (c.blocks.requested, vm.config.memory_zones[2].hotplugged_size) == (128 * MIB, 128 * MIB)
        assert vm.device("mem-a", MemDevice).blocks.requested == 0
        for zone, message in (
            (None, r"memory grows by zones; those that do: a, c"),
            ("b", r"zone 'b' does not grow; those that do: a, c"),
            ("z", r"zone 'z' does not grow"),
        ):
            with pytest.raises(UsageError, match=message):
                await vm.resize(memory=4 * MIB, zone=zone, timeout=0)
        with pytest.raises(UsageError, match="it can have 2097152 to 270532608 bytes"):
            await vm.resize(memory=1 << 30, zone="c", timeout=0)
        c.blocks._plugged[3:5] = b"\1\1"
        vm.machine.memory.write(c.blocks.start + 4 * 2 * MIB, b"plugged")
        await vm.snapshot(tmp_path / "s")
    async with VM.restore(tmp_path / "s") as again:
        c = again.device("mem-c", MemDevice)
        assert (c.blocks.start, c.blocks.requested, c.blocks.plugged) == (5 << 30, 128 * MIB, 4 * MIB)
        assert again.machine.memory.read(c.blocks.start + 4 * 2 * MIB, 7) == b"plugged"
        assert again.device("mem-a", MemDevice).blocks.start == 4 << 30


async def test_a_vm_whose_memory_comes_as_a_whole_has_no_zone_to_resize() -> None:
    memory = parse_memory("size=4M,hotplug_size=128M")
    for method, message in (("acpi", "zones grow by virtio-mem"), ("virtio-mem", "zone 'a' does not grow")):
        made = replace(config("s"), memory=replace(memory, hotplug_method=HotplugMethod(method)))
        async with VM(made) as vm:
            await vm.start()
            with pytest.raises(UsageError, match=message):
                await vm.resize(memory=4 * MIB, zone="a", timeout=0)


@pytest.mark.parametrize(
    ("memory", "zone", "message"),
    [
        ("size=0", "hotplug_size=128M", r"goes by virtio-mem"),
        ("size=0,hotplug_method=virtio-mem", "hotplug_size=100M", r"not a multiple of 128M"),
        ("size=0,hotplug_method=virtio-mem", "hotplugged_size=2M", r"hotplugged_size: 2097152 bytes are not"),
        ("size=0,hotplug_method=virtio-mem", "hotplug_size=128M,hotplugged_size=1M", r"not a multiple of 2M"),
        ("size=0,hotplug_method=virtio-mem,hotplug_size=128M", "", r"is for memory without zones"),
    ],
)
def test_zones_that_cannot_grow_are_refused(memory: str, zone: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(
            config("s"),
            memory=parse_memory(memory),
            memory_zones=(parse_memory_zone(f"id=a,size=4M,{zone}".rstrip(",")),),
        )


# -- NUMA


async def test_nodes_are_in_the_tables_and_what_is_in_none_is_in_the_first() -> None:
    numa = tuple(
        parse_numa(text)
        for text in ("guest_numa_id=1,cpus=[2-3],memory_zones=b,distances=[0@30]", "guest_numa_id=0,cpus=0")
    )
    zones = zoned("id=a,size=2M", "id=b,size=2M", "id=c,size=2M", cpus=parse_cpus("boot=4"), numa=numa)
    async with VM(zones) as vm:
        low = vm.machine.memory.read(0xA0000, 0x50000)
    at = low.index(b"SRAT")
    cpus, memory = read(low[at : at + int.from_bytes(low[at + 4 : at + 8], "little")])
    assert cpus == {0: 0, 1: 0, 2: 1, 3: 1}
    assert sorted(memory) == [(0, 0, 2 * MIB), (0, 4 * MIB, 2 * MIB), (1, 2 * MIB, 2 * MIB)]
    at = low.index(b"SLIT")
    assert low[at + 44 : at + 48] == bytes([10, 30, 30, 10])


async def test_numbers_of_nodes_may_have_gaps_and_the_lowest_has_what_is_in_none() -> None:
    numa = (parse_numa("guest_numa_id=5,cpus=1,memory_zones=b"), parse_numa("guest_numa_id=2"))
    async with VM(zoned("id=a,size=2M", "id=b,size=2M", cpus=parse_cpus("boot=3"), numa=numa)) as vm:
        low = vm.machine.memory.read(0xA0000, 0x50000)
    at = low.index(b"SRAT")
    cpus, memory = read(low[at : at + int.from_bytes(low[at + 4 : at + 8], "little")])
    assert cpus == {0: 2, 1: 5, 2: 2}
    assert sorted(memory) == [(2, 0, 2 * MIB), (5, 2 * MIB, 2 * MIB)]


async def test_a_device_may_have_a_node_of_its_own() -> None:
    """And what is in no node is never in that."""
    numa = (parse_numa("guest_numa_id=0,device_id=rng,distances=[4@40]"), parse_numa("guest_numa_id=4"))
    rng, platform = RngConfig(pci_segment=1, pci_device_id=9), PlatformConfig(num_pci_segments=2)
    async with VM(zoned("id=a,size=4M", numa=numa, rng=rng, platform=platform)) as vm:
        low = vm.machine.memory.read(0xA0000, 0x50000)
    at = low.index(b"SRAT")
    table = low[at : at + int.from_bytes(low[at + 4 : at + 8], "little")]
    cpus, memory = read(table)
    assert (cpus, memory) == ({0: 4}, [(4, 0, 4 * MIB)])
    (initiator,) = (entry for entry in entries(table) if entry[0] == 5)
    assert initiator[3:12] == bytes([1, 0, 0, 0, 0, 1, 0, 0, 9 << 3])


async def test_a_segment_may_be_near_a_device_that_has_a_node_of_its_own() -> None:
    """As one of a graphics card with its memory."""
    numa = (parse_numa("guest_numa_id=0,cpus=0"), parse_numa("guest_numa_id=2,device_id=rng,pci_segments=[1]"))
    rng, platform = RngConfig(pci_segment=1), PlatformConfig(num_pci_segments=2)
    async with VM(zoned("id=a,size=4M", numa=numa, rng=rng, platform=platform)) as vm:
        low = vm.machine.memory.read(0xA0000, 0x50000)
    assert low.count(b"_PXM" + bytes([0x0A, 2])) == 1


async def test_a_processor_of_two_nodes_is_in_the_last_of_them_and_one_that_is_not_there_in_none() -> None:
    numa = (parse_numa("guest_numa_id=3,cpus=[0-1,7]"), parse_numa("guest_numa_id=1,cpus=1"))
    async with VM(zoned("id=a,size=4M", cpus=parse_cpus("boot=2"), numa=numa)) as vm:
        low = vm.machine.memory.read(0xA0000, 0x50000)
    at = low.index(b"SRAT")
    cpus, _ = read(low[at : at + int.from_bytes(low[at + 4 : at + 8], "little")])
    assert cpus == {0: 3, 1: 1}


async def test_a_node_of_a_device_that_is_not_there_is_refused() -> None:
    numa = (parse_numa("guest_numa_id=0"), parse_numa("guest_numa_id=1,device_id=gpu"))
    with pytest.raises(ConfigError, match=r"numa\.device_id: there is no device 'gpu' \(there are rng\)"):
        await VM(zoned("id=a,size=4M", numa=numa, rng=RngConfig())).__aenter__()


async def test_a_guest_without_nodes_has_no_such_tables() -> None:
    async with VM(zoned("id=a,size=4M")) as vm:
        low = vm.machine.memory.read(0xA0000, 0x50000)
    assert b"SRAT" not in low
    assert b"SLIT" not in low


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["guest_numa_id=0", "guest_numa_id=0"], r"guest_numa_id: 0 is given 2 times"),
        (["guest_numa_id=64"], r"64 is not in 0..63"),
        (["guest_numa_id=0,memory_zones=x"], r"there is no zone 'x'"),
        (["guest_numa_id=0,pci_segments=1"], r"numa.pci_segments: there is no segment 1"),
        (["guest_numa_id=0,distances=[1@20]"], r"numa.distances: there is no node 1"),
        (["guest_numa_id=0,distances=[1@10]"], r"10 is not in 11..255"),
        (["guest_numa_id=0,distances=[1@[20,30]]"], r"node 1 has 2 distances"),
        (["guest_numa_id=0,device_id=rng"], r"processors and memory need one"),
        (["guest_numa_id=0", "guest_numa_id=1,cpus=0,device_id=rng"], r"device_id: has a node of its own"),
        (
            ["guest_numa_id=0", "guest_numa_id=1,device_id=rng", "guest_numa_id=2,device_id=rng"],
            r"rng is given 2 times",
        ),
        (["cpus=0"], r"guest_numa_id: is missing"),
    ],
)
def test_nodes_that_cannot_be_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        zoned("id=a,size=4M", numa=tuple(parse_numa(text) for text in texts))


def test_a_configuration_takes_text_and_objects() -> None:
    text: dict[str, Any] = {"memory": "size=0", "memory_zones": ["id=a,size=4M"], "numa": ["guest_numa_id=0"]}
    made = replace(config("s"), **text)
    assert made.memory_zones == (MemoryZoneConfig(id="a", size=4 * MIB),)
    assert made.numa == (NumaConfig(guest_numa_id=0),)
    assert Backing().shared
