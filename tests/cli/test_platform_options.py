"""Keys of the platform and of PCI segments: what they do, and what is refused with the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, BalloonConfig, ConfigError, DeviceConfig, PciSegmentConfig, PlatformConfig, RngConfig, VMConfig
from aiovmm.config import PayloadConfig
from aiovmm.config.options import (
    parse_console,
    parse_cpus,
    parse_device,
    parse_disk,
    parse_memory,
    parse_pci_segment,
    parse_platform,
)
from aiovmm.devices.virtio.iommu import IommuDevice
from aiovmm.virtqueue.features import ACCESS_PLATFORM
from tests.vm.guest import config

HOST = DeviceConfig(path=Path("/sys/bus/pci/devices/0000:00:01.0"))


@pytest.mark.parametrize(("width", "last"), [(48, (1 << 48) - 1), (39, (1 << 39) - 1), (64, (1 << 64) - 1)])
async def test_addresses_of_devices_have_as_many_bits_as_are_asked_for(width: int, last: int) -> None:
    platform = parse_platform(f"iommu_address_width={width}")
    async with VM(replace(config("s"), rng=RngConfig(iommu=True), platform=platform)) as vm:
        space = vm.device("iommu", IommuDevice).read_config(0, 40)
    assert int.from_bytes(space[16:24], "little") == last, "VIRTIO 1.2, 5.13.4: input_range.end"


@pytest.mark.parametrize("width", [0, 31, 65])
def test_other_widths_are_refused(width: int) -> None:
    with pytest.raises(ConfigError, match=r"iommu_address_width: \d+ is not in 32..64"):
        parse_platform(f"iommu_address_width={width}")


async def test_segments_have_windows_as_they_weigh() -> None:
    made = replace(
        config("s"),
        platform=PlatformConfig(num_pci_segments=2),
        pci_segments=(parse_pci_segment("pci_segment=1,mmio32_aperture_weight=3,mmio64_aperture_weight=7"),),
    )
    async with VM(made) as vm:
        first, second = (segment.plan for segment in vm.machine.pci.root.segments)
    assert second.mmio32.size == 3 * first.mmio32.size
    assert second.mmio64.size == 7 * first.mmio64.size
    assert parse_pci_segment("") == PciSegmentConfig(pci_segment=0)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["pci_segment=2"], r"there is no segment 2"),
        (["pci_segment=1", "pci_segment=1"], r"1 is given twice"),
        (["pci_segment=1,mmio32_aperture_weight=0"], r"0 is not in 1..512"),
        (["pci_segment=1,mmio64_aperture_weight=513"], r"513 is not in 1..512"),
    ],
)
def test_segments_that_cannot_be_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(
            config("s"),
            platform=PlatformConfig(num_pci_segments=2),
            pci_segments=tuple(parse_pci_segment(text) for text in texts),
        )


def test_what_host_devices_do_not_have_is_refused_where_there_are_some() -> None:
    platform = parse_platform("vfio_p2p_dma=on")
    VMConfig(PayloadConfig(Path("k")), platform=platform)
    with pytest.raises(ConfigError, match=r"platform.vfio_p2p_dma: is on"):
        VMConfig(PayloadConfig(Path("k")), platform=platform, devices=(HOST,))


def test_a_descriptor_of_iommufd_asks_for_iommufd() -> None:
    assert parse_platform("iommufd_fd=5") == PlatformConfig(iommufd=True, iommufd_fd=5)
    assert parse_platform("iommufd_fd=5,iommufd=on") == parse_platform("iommufd_fd=5")
    assert not parse_platform("iommufd_fd=").iommufd
    with pytest.raises(ConfigError, match=r"platform.iommufd_fd: goes with iommufd=on"):
        parse_platform("iommufd_fd=5,iommufd=off")
    with pytest.raises(ConfigError, match=r"platform.iommufd_fd: 1 is standard input, output or error"):
        parse_platform("iommufd_fd=1")


def test_a_device_has_a_path_or_a_descriptor_and_that_with_iommufd() -> None:
    device = parse_device("fd=5,id=gpu")
    assert (device.fd, device.path, device.id) == (5, None, "gpu")
    for text, message in (
        ("id=gpu", r"device.path: is missing"),
        ("fd=5,path=/d", r"device.path: is given, and fd, too"),
        ("fd=2", r"device.fd: 2 is standard"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_device(text)
    with pytest.raises(ConfigError, match=r"device.fd: goes with platform.iommufd .*--platform iommufd=on"):
        VMConfig(PayloadConfig(Path("k")), devices=(device,))
    VMConfig(PayloadConfig(Path("k")), platform=parse_platform("iommufd=on"), devices=(device,))


def test_bars_are_those_of_pci() -> None:
    assert parse_device("path=/d,x_exclude_mmap_bars=[0,2-3]").x_exclude_mmap_bars == (0, 2, 3)
    with pytest.raises(ConfigError, match=r"x_exclude_mmap_bars: there is no BAR 6"):
        parse_device("path=/d,x_exclude_mmap_bars=6")


def test_memory_in_a_file_is_said_to_be_none(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_memory("size=64M,file=/dev/hugepages") == parse_memory("size=64M,file=")
    assert caplog.messages == ["memory.file: has no effect, as in the reference: memory-zone file= has one"]


def test_of_a_key_given_twice_the_last_holds_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_cpus("boot=2,boot=2").boot == 2
    assert parse_console("serial", "file=a,file=a").path == Path("a")
    assert not caplog.messages
    assert parse_cpus("boot=2,max=4,boot=3").boot == 3
    assert parse_disk("path=a,readonly=on,path=b,readonly=").path == Path("b")
    assert parse_console("console", "file=a,file=b").path == Path("b")
    assert caplog.messages == [
        "cpus.boot: is given twice, and the last holds: '3'",
        "disk.path: is given twice, and the last holds: 'b'",
        "disk.readonly: is given twice, and the last holds: nothing",
        "console.file: is given twice, and the last holds: 'b'",
    ]


@pytest.mark.parametrize("platform", [PlatformConfig(), PlatformConfig(iommu_segments=(0,))])
async def test_a_balloon_behind_the_iommu_is_told_of_and_means_physical_addresses(platform: PlatformConfig) -> None:
    balloon = BalloonConfig(iommu=not platform.iommu_segments)
    async with VM(config("s", balloon=balloon, platform=platform)) as vm:
        machine = vm.machine
        assert machine.devices.iommu is not None
        told = machine.devices.iommu.describe()
        place = machine.devices.address("balloon")
        assert told is not None
        assert any(r.first_bdf <= place.requester_id <= r.last_bdf for r in told.endpoints)
        assert not machine.devices.functions["balloon"].device.features & ACCESS_PLATFORM
