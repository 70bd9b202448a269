"""Devices of the host by iommufd: what is asked of /dev/iommu and of devices' own files, what is said when it cannot be had, and
what is given back."""

from __future__ import annotations

import errno

import pytest

from aiovmm.errors import ConfigError, HostError
from aiovmm.memory import GuestMemory
from aiovmm.vfio import HostDevice, Ioas, Iommufd
from aiovmm.vfio.abi import DMA_READ, Irq
from aiovmm.vfio.space import regions_of
from tests.vfio.guest import ADDRESS
from tests.vfio.kernel import FakeKernel

OTHER = "0000:02:00.0"


def device(kernel: FakeKernel, place: str | int = ADDRESS, space: Ioas | None = None) -> HostDevice:
    """By its address, or by a descriptor."""
    return HostDevice(kernel.path(place) if isinstance(place, str) else place, space or Ioas(Iommufd(kernel)), kernel)


def kinds(kernel: FakeKernel) -> list[str]:
    return sorted(kind for kind, _ in kernel.open_fds.values())


def refusal(kernel: FakeKernel, place: str | int = ADDRESS) -> str:
    """What is said when the device cannot be had; nothing stays open but what was."""
    before = kinds(kernel)
    with pytest.raises((HostError, ConfigError)) as refused:
        device(kernel, place).open()
    assert kinds(kernel) == before
    assert not any(kernel.iommufd.spaces)
    return str(refused.value)


def test_a_device_is_bound_and_attached_and_no_group_is_opened(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    host = device(kernel)
    host.open()
    assert kinds(kernel) == ["file", "iommufd"]
    (file,) = kernel.iommufd.files
    assert file.iommufd is not None
    assert list(file.iommufd.spaces) == [file.space]
    assert [region.size for region in host.regions] == [0x4000, 0, 0x100, 0x20, 0, 0, 0, 256]
    assert host.irqs[Irq.MSIX].count == 8
    host.close()
    host.close()
    assert kernel.at_rest


def test_address_spaces_of_a_vm_share_its_iommufd(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS, 7)
    kernel.add(OTHER, 8)
    iommufd = Iommufd(kernel)
    first, second = (device(kernel, address, Ioas(iommufd)) for address in (ADDRESS, OTHER))
    first.open()
    second.open()
    assert kinds(kernel) == ["file", "file", "iommufd"]
    assert len(kernel.iommufd.spaces) == 2
    first.close()
    assert len(kernel.iommufd.spaces) == 1
    second.close()
    assert kernel.at_rest


def test_devices_that_reach_the_same_share_an_address_space(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    kernel.add(OTHER)  # of the same group
    space = Ioas(Iommufd(kernel))
    hosts = [device(kernel, address, space) for address in (ADDRESS, OTHER)]
    for host in hosts:
        host.open()
    assert len(kernel.iommufd.spaces) == 1
    space.map_range(0, 0x1000, 0x7000_0000, DMA_READ)
    hosts[0].close()
    assert kernel.iommufd.spaces == [{0: (0x7000_0000, 0x1000)}]
    hosts[1].close()
    assert kernel.at_rest
    hosts[0].open()
    assert space.mapped == ()
    hosts[0].close()


def test_guest_memory_is_mapped_and_unmapped(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    space = Ioas(Iommufd(kernel))
    host = device(kernel, space=space)
    host.open()
    memory = GuestMemory.create([(0, 0x10000), (1 << 32, 0x20000)])
    space.map(regions_of(memory)[:1])
    space.map(regions_of(memory))
    low, high = memory.regions
    assert kernel.iommufd.spaces == [{0: (low.host, 0x10000), 1 << 32: (high.host, 0x20000)}]
    space.unmap()
    space.unmap()
    assert kernel.iommufd.spaces == [{}]
    space.map_range(0x1000, 0x1000, low.host, DMA_READ)
    (file,) = kernel.iommufd.iommus
    assert set(file.rights.values()) == {1 | 2 | 4, 1 | 4}  # at a fixed address; the last may not be written
    memory.close()
    host.close()


def test_the_limit_of_locked_memory_is_named_and_nothing_stays_mapped(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    kernel.iommufd.lock_limit = 0x10000
    space = Ioas(Iommufd(kernel))
    host = device(kernel, space=space)
    host.open()
    memory = GuestMemory.create([(0, 0x10000), (1 << 32, 0x20000)])
    with pytest.raises(HostError, match="ulimit -l"):
        space.map(regions_of(memory))
    assert kernel.iommufd.spaces == [{}]
    with pytest.raises(HostError, match="reserved_regions"):
        space.map_range(0xFEE0_0000, 0x1000, 0x7000_0000, DMA_READ)
    memory.close()
    host.close()


@pytest.mark.parametrize(
    ("path", "code", "remedy"),
    [
        ("/dev/iommu", errno.ENOENT, "modprobe iommufd"),
        ("/dev/iommu", errno.EACCES, "access to /dev/iommu"),
        ("/dev/vfio/devices/vfio0", errno.EACCES, "chown"),
        ("/dev/vfio/devices/vfio0", errno.ENOENT, "not bound to vfio-pci"),
    ],
)
def test_a_file_that_cannot_be_opened(kernel: FakeKernel, path: str, code: int, remedy: str) -> None:
    kernel.add(ADDRESS)
    kernel.denied[path] = code
    said = refusal(kernel)
    assert remedy in said
    assert path in said


def test_a_kernel_whose_devices_have_no_files(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    own = kernel.path(ADDRESS) / "vfio-dev"
    (own / "vfio0").rmdir()
    own.rmdir()
    assert "leave out platform.iommufd" in refusal(kernel)


def test_a_host_without_interrupt_remapping(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    kernel.iommufd.isolated_interrupts = False
    assert "modprobe iommufd allow_unsafe_interrupts=1" in refusal(kernel)


def test_a_group_of_which_the_host_uses_another_device(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    kernel.add("0000:01:00.1", driver="snd_hda_intel")
    kernel.iommufd.held.add(7)
    assert "0000:01:00.1 (snd_hda_intel)" in refusal(kernel)


def test_a_group_that_another_program_has(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    kernel.iommufd.held.add(7)
    assert "another VM" in refusal(kernel)


def test_a_device_that_another_vm_has_this_way(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    host = device(kernel)
    host.open()
    with pytest.raises(HostError, match=r"taking 0000:01:00\.0.*another VM"):
        device(kernel).open()
    assert kinds(kernel) == ["file", "iommufd"]
    host.close()
    assert kernel.at_rest


def test_one_of_a_group_whose_other_is_in_another_address_space(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    kernel.add(OTHER)
    iommufd = Iommufd(kernel)
    host = device(kernel, space=Ioas(iommufd))
    host.open()
    with pytest.raises(HostError, match=r"putting 0000:02:00\.0 into an I/O address space.*another VM's"):
        device(kernel, OTHER, Ioas(iommufd)).open()
    assert len(kernel.iommufd.spaces) == 1
    host.close()
    assert kernel.at_rest


def test_files_that_somebody_has_opened_stay_open_and_are_detached(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    theirs, iommu = kernel.open("/dev/vfio/devices/vfio0"), kernel.open("/dev/iommu")
    host = device(kernel, theirs, Ioas(Iommufd(kernel, iommu)))
    assert host.name == f"descriptor {theirs}"
    host.open()
    assert host.name == ADDRESS
    assert host.function is not None
    assert host.function.group == 7
    host.close()
    assert kinds(kernel) == ["file", "iommufd"]
    assert kernel.iommufd.files[0].space is None
    assert not kernel.iommufd.spaces
    with pytest.raises(HostError, match="bound once in its life"):
        device(kernel, theirs, Ioas(Iommufd(kernel, iommu))).open()
    kernel.close(theirs)
    kernel.close(iommu)
    assert kernel.at_rest


def test_descriptors_of_something_else(kernel: FakeKernel) -> None:
    kernel.add(ADDRESS)
    iommu = kernel.open("/dev/iommu")
    assert "is not of a VFIO device" in refusal(kernel, iommu)
    assert "77 is not open" in refusal(kernel, 77)
    with pytest.raises(HostError, match=r"using descriptor 77 \(platform.iommufd_fd\)"):
        device(kernel, space=Ioas(Iommufd(kernel, 77))).open()
    kernel.close(iommu)
    assert kernel.at_rest


def test_a_descriptor_of_a_device_that_its_driver_has_again(kernel: FakeKernel) -> None:
    """sysfs is asked the same as for a path."""
    kernel.add(ADDRESS)
    theirs = kernel.open("/dev/vfio/devices/vfio0")
    link = kernel.path(ADDRESS) / "driver"
    link.unlink()
    assert "no driver holds it" in refusal(kernel, theirs)
    kernel.close(theirs)
