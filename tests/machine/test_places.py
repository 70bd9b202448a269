"""Where devices are on PCI: the reference monitor's order, slots of one's choice, 96 segments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, VMConfig
from aiovmm.config import PlatformConfig
from aiovmm.config.options import parse_console, parse_disk, parse_net, parse_pmem, parse_rng, parse_vsock
from aiovmm.errors import AiovmmError, KvmError
from aiovmm.kvm import Kvm
from tests.devices.virtio import netns
from tests.vm.guest import config

pytestmark = pytest.mark.kvm


@pytest.fixture(autouse=True, scope="module")
def kvm() -> None:
    try:
        Kvm.open().close()
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(4 << 20))
    return path


def slots(vm: VM, segment: int = 0) -> dict[int, str]:
    """Slot -> the device's PCI name, without the host bridge."""
    functions = vm.machine.pci.root.segments[segment].functions
    return {slot: function.name for slot, function in functions.items() if slot}


def everything(image: Path) -> VMConfig:
    other = image.with_name("pmem")
    other.write_bytes(bytes(4 << 20))
    return replace(
        config("s"),
        console=parse_console("console", "null"),
        disks=(parse_disk(f"path={image},image_type=raw"),),
        nets=(parse_net("tap="),),
        rng=parse_rng("iommu=on"),
        pmems=(parse_pmem(f"file={other}"),),
        vsock=parse_vsock("cid=3"),
    )


async def test_the_order_is_the_references(image: Path) -> None:
    """So one disk and one card are in slots 2 and 3, as with the reference's default console."""
    with netns.namespace():
        async with VM(everything(image)) as vm:
            found = slots(vm)
    assert sorted(found) == list(range(1, 8))
    assert [found[slot] for slot in sorted(found)] == ["console", "disk0", "net0", "rng", "pmem", "vsock", "iommu"]


async def test_a_slot_of_ones_choice(image: Path) -> None:
    """The others take what is left, wherever in the order they come."""
    wanted = replace(
        config("s"),
        console=parse_console("console", "null"),
        disks=(parse_disk(f"path={image},pci_device_id=1"),),
        rng=parse_rng("pci_device_id=9"),
        vsock=parse_vsock("cid=3"),
    )
    async with VM(wanted) as vm:
        assert slots(vm) == {1: "disk0", 2: "console", 3: "vsock", 9: "rng"}


async def test_hvc0_may_sit_elsewhere_and_behind_the_iommu() -> None:
    wanted = replace(
        config("s"),
        console=parse_console("console", "null,id=con,pci_segment=1,pci_device_id=5,iommu=on"),
        platform=PlatformConfig(num_pci_segments=2),
    )
    async with VM(wanted) as vm:
        assert slots(vm) == {1: "iommu"}
        assert list(slots(vm, 1)) == [5]
        assert vm.device("con").device_id == 3


async def test_96_segments(image: Path) -> None:
    wanted = replace(
        config("ho"),
        disks=(parse_disk(f"path={image},pci_segment=95"),),
        platform=PlatformConfig(num_pci_segments=96),
    )
    async with VM(wanted) as vm:
        assert len(vm.machine.pci.root.segments) == 96
        assert list(slots(vm, 95)) == [1]
        await vm.start()
        assert (await vm.wait()).ok


async def test_more_devices_than_slots(image: Path) -> None:
    rng = tuple(parse_disk(f"path={image},readonly=on") for _ in range(32))
    with pytest.raises(AiovmmError, match="is full"):
        async with VM(replace(config("s"), disks=rng)):
            pass
