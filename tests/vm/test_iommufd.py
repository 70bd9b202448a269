"""Devices of the host by iommufd, in VMs: KVM is the real one, VFIO and iommufd a model (tests/vfio)."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiovmm import VM, ConfigError, DeviceConfig, EventKind, PlatformConfig, RebootPolicy
from aiovmm.bus import Space
from aiovmm.machine.architecture import board_of_host
from aiovmm.vfio import Ioas, Iommufd
from tests.open_files import descriptors
from tests.vfio.kernel import MSIX, FakeKernel, in_the_hosts_place
from tests.vm import test_hotplug_hosts as hosts
from tests.vm.guest import config, counts_on, event
from tests.vm.hotplug_guest import vendor

pytestmark = pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers")

BY_IOMMUFD = PlatformConfig(iommufd=True)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    with in_the_hosts_place(tmp_path, monkeypatch) as kernel:
        yield kernel


def kinds(kernel: FakeKernel) -> list[str]:
    return sorted(kind for kind, _ in kernel.open_fds.values())


async def test_one_comes_is_driven_goes_and_comes_again(kernel: FakeKernel) -> None:
    hardware = kernel.add(hosts.FIRST)
    device = DeviceConfig(path=kernel.path(hosts.FIRST))
    async with VM(config("s", platform=BY_IOMMUFD)) as vm:
        await vm.start()
        await counts_on(vm)
        slots = hosts.taken(vm)
        after: list[int] = []
        for _ in range(3):
            assert await hosts.added(vm, device, [1]) == "device0"
            assert kinds(kernel) == ["file", "iommufd"]
            (file,) = kernel.iommufd.files
            assert kernel.known_to_kvm == {file}
            (ram,) = vm.machine.memory.regions
            assert kernel.dma == {0: (ram.host, hosts.RAM)}
            await hosts.drive(vm, 1)
            assert list(hardware.irqs[MSIX]) == [0]
            await hosts.removed(vm, "device0", [1])
            assert vendor(vm, 1) == 0xFFFF
            assert kernel.at_rest
            assert hosts.taken(vm) == slots
            after.append(descriptors())
        assert len(set(after)) == 1, "no descriptor is left behind"
        assert hardware.opened == 3
        await counts_on(vm)
        await vm.kill()
        assert EventKind.DEVICE_ERROR not in [e.kind async for e in vm.events(from_start=True)]


async def test_one_is_there_over_a_reset_and_to_the_end(kernel: FakeKernel) -> None:
    hardware = kernel.add(hosts.FIRST)
    device = DeviceConfig(path=kernel.path(hosts.FIRST))
    async with VM(config("s", platform=BY_IOMMUFD, devices=(device,), on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        vm.machine.bus.write(Space.PIO, 0x600, b"\x01")
        await event(vm, EventKind.REBOOTED)
        assert vendor(vm, 1) == 0x8086
        assert hardware.opened == 1
        assert kernel.dma == {0: (vm.machine.memory.regions[0].host, hosts.RAM)}
        assert len(kernel.known_to_kvm) == 1
    assert kernel.at_rest


async def test_files_that_are_handed_in_are_copied(kernel: FakeKernel) -> None:
    """Of both, and by a VM that is made with the device and one that it comes to."""
    for address, group in ((hosts.FIRST, 7), (hosts.SECOND, 8)):
        kernel.add(address, group)
    iommu, first, second = (
        kernel.open(f"/dev/{name}") for name in ("iommu", "vfio/devices/vfio0", "vfio/devices/vfio1")
    )
    platform = PlatformConfig(iommufd=True, iommufd_fd=iommu)
    async with VM(config("s", platform=platform, devices=(DeviceConfig(fd=first),))) as vm:
        await vm.start()
        assert vendor(vm, 1) == 0x8086
        assert await hosts.added(vm, DeviceConfig(fd=second), [2]) == "device1"
        assert len(kernel.iommufd.iommus) == 1
        assert len(kernel.iommufd.files) == 2
        with pytest.raises(ConfigError, match=r"0000:02:00\.0 is this guest's already, as 'device1'"):
            await vm.add(DeviceConfig(path=kernel.path(hosts.SECOND)))
        await hosts.removed(vm, "device1", [2])
        assert [file.space is None for file in kernel.iommufd.files] == [False, True]
    assert kinds(kernel) == ["file", "file", "iommufd"]
    assert not kernel.iommufd.spaces
    for fd in (first, second, iommu):
        kernel.close(fd)


async def test_a_descriptor_without_iommufd_and_none_at_all(kernel: FakeKernel) -> None:
    async with VM(config("s")) as vm:
        with pytest.raises(ConfigError, match=r"device\.fd: goes with platform\.iommufd"):
            await vm.add(DeviceConfig(fd=5))
    async with VM(config("s", platform=BY_IOMMUFD)) as vm:
        with pytest.raises(ConfigError, match=r"device\.fd: 500000 is not open"):
            await vm.add(DeviceConfig(fd=500_000))


SAME: tuple[Callable[..., Awaitable[None]], ...] = (
    hosts.test_both_are_let_go_of_at_once,
    hosts.test_a_guest_that_does_not_look_has_no_device,
    hosts.test_a_caller_that_gives_up_as_kvm_is_told_leaves_no_group_with_it,
    hosts.test_a_guest_that_lets_go_as_its_machine_goes_takes_nothing_out_twice,
    hosts.test_a_guest_that_does_not_let_go_loses_it_by_force_or_at_its_end,
    hosts.test_the_end_of_a_guest_waits_for_one_that_is_just_taken,
    hosts.test_persistent_memory_is_reached_while_it_is_there,
    hosts.test_persistent_memory_that_cannot_be_locked_does_not_come,
    partial(hosts.test_blocks_of_virtio_mem_are_reached_while_they_are_plugged, segment=0),
    partial(hosts.test_blocks_of_virtio_mem_are_reached_while_they_are_plugged, segment=1),
    hosts.test_modules_are_reached_while_they_are_there,
    hosts.test_behind_the_virtual_iommu,
)


@pytest.mark.parametrize("test", SAME, ids=lambda test: getattr(test, "func", test).__name__.removeprefix("test_"))
async def test_as_by_a_container(
    kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: Callable[..., Awaitable[None]]
) -> None:
    """What is asked of a container there is asked of iommufd here."""
    monkeypatch.setattr("aiovmm.machine.passthrough.Container", lambda system: Ioas(Iommufd(system)))
    given: dict[str, Any] = {"kernel": kernel, "tmp_path": tmp_path, "monkeypatch": monkeypatch}
    bound = getattr(test, "keywords", {})
    await test(**{name: given[name] for name in inspect.signature(test).parameters if name not in bound})
    assert not asyncio.all_tasks() - {asyncio.current_task()}
