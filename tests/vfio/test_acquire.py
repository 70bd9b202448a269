"""Taking a device from the host: what is asked of it, what is said when it cannot be had, what is given back."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from aiovmm.errors import HostError
from aiovmm.memory import GuestMemory
from aiovmm.vfio import Container, HostDevice
from aiovmm.vfio.abi import Irq
from aiovmm.vfio.space import regions_of
from tests.vfio.guest import ADDRESS
from tests.vfio.kernel import FakeKernel


def device(kernel: FakeKernel, address: str = ADDRESS, container: Container | None = None) -> HostDevice:
    return HostDevice(kernel.path(address), container or Container(kernel), kernel)


def refusal(kernel: FakeKernel, address: str = ADDRESS) -> str:
    """What is said when the device cannot be had; nothing stays open."""
    with pytest.raises(HostError) as refused:
        device(kernel, address).open()
    assert not kernel.open_fds
    return str(refused.value)


def test_regions_and_interrupts_are_asked_for(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    host = device(kernel)
    host.open()
    assert [region.size for region in host.regions] == [0x4000, 0, 0x100, 0x20, 0, 0, 0, 256]
    assert host.regions[0].areas == ((0, 0x4000),)
    assert host.regions[3].areas == ()  # I/O ports cannot be mapped
    assert host.irqs[Irq.MSIX].count == 8
    assert host.irqs[Irq.REQ].count == 0  # this kernel does not know it
    assert host.can_reset
    host.close()
    host.close()
    assert not kernel.open_fds


def test_areas_that_can_be_mapped_come_from_the_sparse_mmap_capability(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS, sparse=((0, 0x2000), (0x3000, 0x1000)))
    host = device(kernel)
    host.open()
    assert host.regions[0].areas == ((0, 0x2000), (0x3000, 0x1000))
    host.close()


def test_two_devices_of_a_group_share_it(kernel: FakeKernel) -> None:
    kernel.add("0000:01:00.0")
    kernel.add("0000:01:00.1")
    container = Container(kernel)
    first, second = device(kernel, "0000:01:00.0", container), device(kernel, "0000:01:00.1", container)
    first.open()
    second.open()
    assert len(container.groups) == 1
    first.close()
    assert len(container.groups) == 1
    second.close()
    assert not container.groups
    assert not kernel.open_fds


def test_groups_of_one_machine_share_a_container(kernel: FakeKernel) -> None:
    kernel.add("0000:01:00.0", 7)
    kernel.add("0000:02:00.0", 8)
    container = Container(kernel)
    for address in ("0000:01:00.0", "0000:02:00.0"):
        device(kernel, address, container).open()
    assert sorted(kind for kind, _ in kernel.open_fds.values()) == ["container", "device", "device", "group", "group"]


def test_without_an_iommu(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS, None)
    assert "intel_iommu=on" in refusal(kernel)


def test_a_device_that_its_driver_holds(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS, driver="nvme")
    said = refusal(kernel)
    assert "the host's driver nvme holds it" in said
    assert f"echo {ADDRESS} > /sys/bus/pci/devices/{ADDRESS}/driver/unbind" in said


def test_a_device_that_no_driver_holds(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS, driver="")
    said = refusal(kernel)
    assert "no driver holds it" in said
    assert "drivers_probe" in said
    assert "unbind" not in said


def test_a_path_that_is_no_pci_device(kernel: FakeKernel) -> None:
    assert "lspci -D" in refusal(kernel, "sda")
    assert "lspci -D" in refusal(kernel, "0000:09:00.0")


def test_a_path_that_is_a_link_in_a_circle(kernel: FakeKernel) -> None:
    loop = kernel.path("loop")
    loop.parent.mkdir(parents=True, exist_ok=True)
    loop.symlink_to(loop)
    assert "lspci -D" in refusal(kernel, "loop")


def test_a_group_of_which_the_host_uses_another_device(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    kernel.add("0000:01:00.1", driver="snd_hda_intel")
    kernel.add("0000:01:00.2", driver="pcieport")
    kernel.unviable.add(7)
    said = refusal(kernel)
    assert "0000:01:00.1 (snd_hda_intel)" in said
    assert "0000:01:00.2" not in said


@pytest.mark.parametrize(
    ("path", "code", "remedy"),
    [
        ("/dev/vfio/vfio", errno.ENOENT, "modprobe vfio-pci"),
        ("/dev/vfio/vfio", errno.EACCES, "access to /dev/vfio/vfio"),
        ("/dev/vfio/7", errno.EACCES, "chown"),
        ("/dev/vfio/7", errno.EBUSY, "another VM"),
        ("/dev/vfio/7", errno.ENOENT, "modprobe vfio-pci"),
    ],
)
def test_a_file_that_cannot_be_opened(kernel: FakeKernel, path: str, code: int, remedy: str) -> None:
    kernel.add(ADDRESS)
    kernel.denied[path] = code
    said = refusal(kernel)
    assert remedy in said
    assert path in said


def test_a_host_without_interrupt_remapping(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    kernel.unsafe_interrupts = False
    assert "allow_unsafe_interrupts=1" in refusal(kernel)


def test_guest_memory_is_mapped_and_unmapped(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    container = Container(kernel)
    host = device(kernel, container=container)
    host.open()
    memory = GuestMemory.create([(0, 0x10000), (1 << 32, 0x20000)])
    container.map(regions_of(memory)[:1])
    container.map(regions_of(memory))  # of which the first came while all of it was being mapped
    low, high = memory.regions
    assert kernel.dma == {0: (low.host, 0x10000), 1 << 32: (high.host, 0x20000)}
    container.unmap()
    container.unmap()
    assert not kernel.dma
    memory.close()
    host.close()


def test_the_limit_of_locked_memory_is_named_and_nothing_stays_mapped(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    kernel.lock_limit = 0x10000
    container = Container(kernel)
    host = device(kernel, container=container)
    host.open()
    memory = GuestMemory.create([(0, 0x10000), (1 << 32, 0x20000)])
    with pytest.raises(HostError, match="ulimit -l"):
        container.map(regions_of(memory))
    assert not kernel.dma
    memory.close()
    host.close()


@pytest.mark.parametrize(
    ("count", "taken_back", "told"),
    [
        (5, lambda container, memory: container.map(regions_of(memory)), "ulimit -l"),
        (3, lambda container, _: container.unmap(), "unmapping guest memory"),
        (3, lambda container, _: container.unmap_ranges(container.mapped), "unmapping guest memory"),
    ],
    ids=["map", "unmap", "unmap_ranges"],
)
def test_what_cannot_be_unmapped_keeps_nothing_else_mapped(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, count: int, taken_back: Any, told: str
) -> None:
    """And why memory could not be mapped is told, not what else went wrong then."""
    kernel.add(ADDRESS)
    kernel.lock_limit = 0x40000
    container = Container(kernel)
    host = device(kernel, container=container)
    host.open()
    memory = GuestMemory.create([(at << 32, 0x10000) for at in range(count)])
    unmap = Container._unmap

    def fail(self: Container, iova: int, size: int) -> None:
        if iova == 1 << 32:
            raise HostError("unmapping guest memory", errno.EINVAL)
        unmap(self, iova, size)

    if count == 3:
        container.map(regions_of(memory))
    monkeypatch.setattr(Container, "_unmap", fail)
    with pytest.raises(HostError, match=told):
        taken_back(container, memory)
    assert list(kernel.dma) == [1 << 32]
    assert container.mapped == ((1 << 32, 0x10000),)
    memory.close()
    host.close()
