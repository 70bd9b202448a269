"""A guest whose devices have chosen the ids that others would have been given."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiovmm import (
    VM,
    ConfigError,
    DiskConfig,
    HotplugMethod,
    MemoryConfig,
    MemoryZoneConfig,
    PlatformConfig,
    PmemConfig,
    PvpanicConfig,
    RngConfig,
    Template,
    UsageError,
    VsockConfig,
)
from aiovmm.devices.virtio.blk import BlkDevice
from aiovmm.devices.virtio.rng import RngDevice
from tests.vm.guest import config, counts_on

ZONE = 128 << 20


def image(tmp_path: Path, mebibytes: int) -> Path:
    path = tmp_path / f"{mebibytes}.img"
    path.write_bytes(bytes(mebibytes << 20))
    return path


def disks(tmp_path: Path) -> tuple[DiskConfig, ...]:
    """disk1, disk2, whose own name the first has chosen, and disk0."""
    chosen = [(1, "disk1"), (2, None), (3, "disk0")]
    return tuple(DiskConfig(path=image(tmp_path, size), id=id_) for size, id_ in chosen)


def sizes(vm: VM) -> dict[str, int]:
    """MiB of each disk: which image is behind the id."""
    return {id_: vm.device(id_, BlkDevice).capacity >> 20 for id_ in ("disk0", "disk1", "disk2")}


async def test_a_made_id_is_nobodys(tmp_path: Path) -> None:
    pmem = PmemConfig(file=image(tmp_path, 4), id="rng")
    vsock = VsockConfig(id="custom0")
    wanted = config("s", disks=disks(tmp_path), pmems=(pmem,), vsock=vsock, rng=RngConfig())
    async with VM(wanted, devices=[RngDevice.from_config(RngConfig())]) as vm:
        assert set(vm.stats().devices) == {"disk0", "disk1", "disk2", "rng", "rng0", "custom0", "custom00"}
        await vm.start()
        await counts_on(vm)


async def test_a_device_that_comes_later_has_nobodys_and_leaves_by_it(tmp_path: Path) -> None:
    wanted = config("s", disks=disks(tmp_path), pvpanic=PvpanicConfig(id="disk3"))
    async with VM(wanted) as vm:
        id_ = await vm.add(DiskConfig(path=image(tmp_path, 4)))
        assert id_ == "disk4"
        with pytest.raises(ConfigError, match=r"'disk4' names two devices"):
            await vm.add(RngConfig(id="disk4"))
        await vm.remove("disk4")
        assert [disk.id for disk in vm.config.disks] == ["disk1", "disk2", "disk0"]


async def test_the_iommu_is_known_whatever_another_is_called(tmp_path: Path) -> None:
    disk = DiskConfig(path=image(tmp_path, 4), id="iommu", pci_segment=1)
    platform = PlatformConfig(num_pci_segments=2, iommu_segments=(1,))
    async with VM(config("s", disks=(disk,), platform=platform)) as vm:
        assert set(vm.stats().devices) == {"iommu", "iommu0"}
        with pytest.raises(UsageError, match="the IOMMU stands between"):
            await vm.remove("iommu0")
        await vm.remove("iommu")
        assert set(vm.stats().devices) == {"iommu0"}


async def test_memory_that_comes_is_known_by_its_zone(tmp_path: Path) -> None:
    zones = (
        MemoryZoneConfig(id="a", size=ZONE, hotplug_size=ZONE),
        MemoryZoneConfig(id="a0", size=ZONE, hotplug_size=ZONE),
    )
    memory = MemoryConfig(0, hotplug_method=HotplugMethod.VIRTIO_MEM)
    disk = DiskConfig(path=image(tmp_path, 4), id="mem-a")
    async with VM(config("s", memory=memory, memory_zones=zones, disks=(disk,))) as vm:
        assert set(vm.stats().devices) == {"mem-a", "mem-a0", "mem-a00"}
        await vm.start()
        await vm.resize(memory=2 * ZONE, zone="a0", timeout=0)
        assert [zone.hotplugged_size for zone in vm.config.memory_zones] == [0, ZONE]


async def test_a_snapshot_and_its_forks_have_the_disks_by_their_ids(tmp_path: Path) -> None:
    """The image behind each is known by the id."""
    wanted = {"disk0": 3, "disk1": 1, "disk2": 2}
    async with VM(config("s", disks=disks(tmp_path))) as vm:
        assert sizes(vm) == wanted
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(tmp_path / "saved")
    async with VM.restore(tmp_path / "saved") as again:
        assert sizes(again) == wanted
    template = await Template.open(tmp_path / "saved")
    async with template, template.fork() as fork:
        assert sizes(fork) == wanted
