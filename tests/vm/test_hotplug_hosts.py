"""Devices of the host that come to a guest that runs, and go: KVM is the real one, VFIO a model (tests/vfio/kernel.py)."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from aiovmm import (
    VM,
    BalloonConfig,
    ConfigError,
    DeviceConfig,
    DiskConfig,
    EventKind,
    HostError,
    HotplugMethod,
    HotplugTimeout,
    MemoryConfig,
    PlatformConfig,
    PmemConfig,
    RebootPolicy,
    RngConfig,
    SnapshotError,
    StateError,
    UsageError,
)
from aiovmm.boot.x86_64.layout import ACPI_TABLES, ACPI_TABLES_END
from aiovmm.bus import Space
from aiovmm.devices.virtio.mem import BLOCK_SIZE, MemDevice
from aiovmm.devices.virtio.mem.protocol import Answer, Kind
from aiovmm.errors import KvmError
from aiovmm.machine.architecture import board_of_host
from aiovmm.machine.passthrough import Passthrough
from aiovmm.pci.root import PciAddress
from tests.open_files import descriptors
from tests.vfio.kernel import CONFIG, MSIX, FakeDevice, FakeKernel, FakeKvmVfio, in_the_hosts_place
from tests.vm import test_hotplug_modules as modules
from tests.vm.drivers import start_driver
from tests.vm.guest import config, counts_on, event, until
from tests.vm.hotplug_guest import LONG, eject, let_go, look, notified, vendor

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
RAM = 4 << 20
MASTER, MEMORY = 4, 2  # bits of the command register

pytestmark = pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    with in_the_hosts_place(tmp_path, monkeypatch) as kernel:
        yield kernel


def taken(vm: VM) -> int:
    """Memory slots of KVM."""
    return vm.machine.kvm_vm._next_slot - len(vm.machine.kvm_vm._free_slots)


async def write(vm: VM, slot: int, offset: int, value: int, size: int) -> None:
    pending = vm.machine.pci.root.segments[0].write_config(slot, offset, value.to_bytes(size, "little"))
    if pending is not None:
        await asyncio.wait_for(pending, LONG)


async def drive(vm: VM, slot: int) -> None:
    """As a driver does: BARs where they were put, bus mastering, the first vector of MSI-X."""
    (bar,) = [p for p in (vm.machine.pci.root.segments[0].functions[slot].bars) if p.index == 0]
    at = vm.machine.pci.root.segments[0].plan.mmio64.base
    await write(vm, slot, 0x10, at & 0xFFFF_FFFF, 4)
    await write(vm, slot, 0x14, at >> 32, 4)
    await write(vm, slot, 4, MASTER | MEMORY, 2)
    assert bar.size == 0x4000
    for n, word in enumerate((0xFEE0_0000, 0, 0x40, 0)):
        pending = vm.machine.bus.write(Space.MMIO, at + 0x2000 + 4 * n, struct.pack("<I", word))
        if pending is not None:
            await asyncio.wait_for(pending, LONG)
    await write(vm, slot, 0x72, 0x8000, 2)


async def added(vm: VM, device: DeviceConfig, slots: list[int], segment: int = 0) -> str:
    task = asyncio.ensure_future(vm.add(device))
    assert await look(vm, segment) == slots
    return await task


async def removed(vm: VM, id_: str, slots: list[int], segment: int = 0) -> None:
    task = asyncio.ensure_future(vm.remove(id_))
    assert await let_go(vm, segment) == slots
    await task


async def test_one_comes_is_driven_goes_and_comes_again(kernel: FakeKernel) -> None:
    hardware = kernel.add(FIRST)
    device = DeviceConfig(path=kernel.path(FIRST))
    async with VM(config("s")) as vm:
        await vm.start()
        await counts_on(vm)
        slots = taken(vm)
        after: list[int] = []
        for _ in range(3):
            assert await added(vm, device, [1]) == "device0"
            assert vendor(vm, 1) == 0x8086
            assert vm.config.devices == (DeviceConfig(path=device.path, id="device0", pci_device_id=1),)
            assert "device0" in vm.stats().devices
            (ram,) = vm.machine.memory.regions
            assert kernel.dma == {0: (ram.host, RAM)}
            assert kernel.known_to_kvm == {7}
            await drive(vm, 1)
            assert taken(vm) > slots
            assert list(hardware.irqs[MSIX]) == [0]
            await removed(vm, "device0", [1])
            assert vendor(vm, 1) == 0xFFFF
            assert not vm.config.devices
            assert "device0" not in vm.stats().devices
            assert kernel.at_rest
            assert not hardware.irqs
            assert not hardware.bytes_at(CONFIG, 4, 1)[0] & MASTER
            assert taken(vm) == slots
            after.append(descriptors())
        assert len(set(after)) == 1, "no descriptor is left behind"
        assert hardware.opened == 3
        await counts_on(vm)
        await vm.kill()
        seen = [(e.kind, e.device) async for e in vm.events(from_start=True)]
    assert seen.count((EventKind.DEVICE_ADDED, "device0")) == 3
    assert seen.count((EventKind.DEVICE_REMOVED, "device0")) == 3
    assert EventKind.DEVICE_ERROR not in {kind for kind, _ in seen}


async def test_the_first_brings_the_container_and_the_last_takes_it(kernel: FakeKernel) -> None:
    for address, group in ((FIRST, 7), (SECOND, 8)):
        kernel.add(address, group)
    async with VM(config("s", devices=(DeviceConfig(path=kernel.path(FIRST)),))) as vm:
        await vm.start()
        mapped = dict(kernel.dma)
        assert await added(vm, DeviceConfig(path=kernel.path(SECOND)), [2]) == "device1"
        assert [kind for kind, _ in kernel.open_fds.values()].count("container") == 1
        assert kernel.known_to_kvm == {7, 8}
        await removed(vm, "device0", [1])
        assert kernel.dma == mapped
        assert kernel.known_to_kvm == {8}
        await removed(vm, "device1", [2])
        assert kernel.at_rest


async def test_two_of_one_group_share_it(kernel: FakeKernel) -> None:
    for address in (FIRST, SECOND):
        kernel.add(address)
    async with VM(config("s")) as vm:
        await vm.start()
        for slot, address in enumerate((FIRST, SECOND), 1):
            await added(vm, DeviceConfig(path=kernel.path(address)), [slot])
        await removed(vm, "device0", [1])
        assert kernel.known_to_kvm == {7}
        assert sorted(kind for kind, _ in kernel.open_fds.values()) == ["container", "device", "group"]
        await removed(vm, "device1", [2])
        assert kernel.at_rest


async def test_both_are_let_go_of_at_once(kernel: FakeKernel) -> None:
    for address, group in ((FIRST, 7), (SECOND, 8)):
        kernel.add(address, group)
    devices = tuple(DeviceConfig(path=kernel.path(address)) for address in (FIRST, SECOND))
    async with VM(config("s", devices=devices)) as vm:
        await vm.start()
        removals = [asyncio.ensure_future(vm.remove(id_)) for id_ in ("device0", "device1")]
        await until(
            lambda: all(vm._hotplug is not None and id_ in vm._hotplug._removals for id_ in ("device0", "device1"))
        )
        assert await let_go(vm) == [1, 2]
        await asyncio.gather(*removals)
        assert kernel.at_rest


async def test_one_that_cannot_be_quieted_leaves_no_other_behind(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KVM does not forget the group of the last, which is the first to go."""
    for address, group in ((FIRST, 7), (SECOND, 8)):
        kernel.add(address, group)
    forget, close = FakeKvmVfio.remove_file, kernel.close
    reached: list[int] = []

    def refuse(device: FakeKvmVfio, fd: int) -> None:
        if kernel.open_fds[fd] == ("group", 8):
            raise KvmError("having KVM forget a host device", errno.EINVAL)
        forget(device, fd)

    def closed(fd: int) -> None:
        reached.append(len(kernel.dma))
        close(fd)

    monkeypatch.setattr(FakeKvmVfio, "remove_file", refuse)
    monkeypatch.setattr(kernel, "close", closed)
    devices = tuple(DeviceConfig(path=kernel.path(address)) for address in (FIRST, SECOND))
    async with AsyncExitStack() as stack:
        vm = await stack.enter_async_context(VM(config("s", devices=devices)))
        await vm.start()
        assert kernel.dma
        with pytest.raises(HostError, match="having KVM forget a host device"):
            await stack.aclose()
    assert reached
    assert not any(reached), "memory has gone before its mappings"


async def test_a_guest_that_does_not_look_has_no_device(kernel: FakeKernel) -> None:
    kernel.add(FIRST)
    async with VM(config("s")) as vm:
        await vm.start()
        with pytest.raises(HotplugTimeout, match=r"adding 'device0': the guest has not looked at it within 0\.05 s"):
            await vm.add(DeviceConfig(path=kernel.path(FIRST)), timeout=0.05)
        assert kernel.at_rest
        assert vendor(vm, 1) == 0xFFFF
        assert not vm.config.devices
        await counts_on(vm)


async def test_a_caller_that_gives_up_while_memory_is_locked_has_no_device(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.add(FIRST)
    async with VM(config("s")) as vm:
        await vm.start()
        loop, real = asyncio.get_running_loop(), kernel.ioctl

        def ioctl(fd: int, request: int, argument: int | bytearray = 0) -> int:
            result = real(fd, request, argument)
            if request & 0xFF == 100 + 13:
                loop.call_soon_threadsafe(task.cancel)
            return result

        monkeypatch.setattr(kernel, "ioctl", ioctl)
        task = asyncio.ensure_future(vm.add(DeviceConfig(path=kernel.path(FIRST))))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert kernel.at_rest
        assert not vm.config.devices
        await counts_on(vm)


async def test_a_caller_that_gives_up_as_kvm_is_told_leaves_no_group_with_it(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.add(FIRST)
    tell = FakeKvmVfio.add_file
    async with VM(config("s")) as vm:
        await vm.start()
        loop = asyncio.get_running_loop()

        def told(device: FakeKvmVfio, fd: int) -> None:
            tell(device, fd)
            loop.call_soon_threadsafe(task.cancel)

        monkeypatch.setattr(FakeKvmVfio, "add_file", told)
        task = asyncio.ensure_future(vm.add(DeviceConfig(path=kernel.path(FIRST))))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert kernel.at_rest
        await counts_on(vm)


async def test_a_vm_that_is_given_up_as_it_is_made_unmaps_its_memory_before_it_goes(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.add(FIRST)
    loop, ioctl, close = asyncio.get_running_loop(), kernel.ioctl, kernel.close
    reached: list[int] = []

    def called(fd: int, request: int, argument: int | bytearray = 0) -> int:
        result = ioctl(fd, request, argument)
        if request & 0xFF == 100 + 13:
            loop.call_soon_threadsafe(task.cancel)
        return result

    def closed(fd: int) -> None:
        reached.append(len(kernel.dma))
        close(fd)

    monkeypatch.setattr(kernel, "ioctl", called)
    monkeypatch.setattr(kernel, "close", closed)
    vm = VM(config("s", devices=(DeviceConfig(path=kernel.path(FIRST)),)))
    task = asyncio.ensure_future(vm.__aenter__())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reached
    assert not any(reached)


async def test_what_goes_while_it_comes_is_not_configured_again(
    kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it may have its slot."""
    kernel.add(FIRST)
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    opening, may_go, real = threading.Event(), threading.Event(), kernel.open

    def opened(path: str) -> int:
        opening.set()
        assert may_go.wait(LONG)
        return real(path)

    async with VM(config("s", disks=(DiskConfig(path=tmp_path / "image"),))) as vm:
        await vm.start()
        with pytest.raises(HotplugTimeout):
            await vm.remove("disk0", timeout=0.01)
        await notified(vm)
        monkeypatch.setattr(kernel, "open", opened)
        adding = asyncio.ensure_future(vm.add(DeviceConfig(path=kernel.path(FIRST))))
        await until(opening.is_set)
        await eject(vm, 0b10)
        await event(vm, EventKind.DEVICE_REMOVED)
        may_go.set()
        assert await look(vm) == [1]
        assert await adding == "device0"
        assert not vm.config.disks
        assert [device.pci_device_id for device in vm.config.devices] == [1]
        await removed(vm, "device0", [1])
        assert kernel.at_rest


Step = tuple[type, str]
OUT_OF_ITS_GROUP: Step = FakeKvmVfio, "remove_file"
CLOSED: Step = Passthrough, "close_one"


@contextmanager
def slow_to_go(
    monkeypatch: pytest.MonkeyPatch, step: Step = OUT_OF_ITS_GROUP
) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The host's kernel takes its time for this step: the one is set when it begins, and the other one is to be."""
    going, may_go, real = threading.Event(), threading.Event(), getattr(*step)

    def slow(self: object, what: object) -> None:
        going.set()
        assert may_go.wait(LONG)
        real(self, what)

    monkeypatch.setattr(*step, slow)
    try:
        yield going, may_go
    finally:
        may_go.set()


async def test_a_guest_is_told_of_what_comes_into_a_slot_that_is_being_given_up(
    kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.add(FIRST)
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    async with VM(config("s", devices=(DeviceConfig(path=kernel.path(FIRST)),))) as vm:
        await vm.start()
        with slow_to_go(monkeypatch) as (going, _):
            removing = asyncio.ensure_future(vm.remove("device0"))
            letting_go = asyncio.ensure_future(let_go(vm))
            await until(going.is_set)
            adding = asyncio.ensure_future(vm.add(DiskConfig(path=tmp_path / "image")))
            await until(lambda: vendor(vm, 1) == 0x1AF4)
        assert await letting_go == [1]
        await removing
        assert await look(vm) == [1]
        assert await adding == "disk0"
        assert [disk.id for disk in vm.config.disks] == ["disk0"]


async def test_one_that_is_on_its_way_out_can_come_again_at_once(kernel: FakeKernel) -> None:
    kernel.add(FIRST)
    device = DeviceConfig(path=kernel.path(FIRST), id="gpu")
    async with VM(config("s", devices=(device,))) as vm:
        await vm.start()
        removing = asyncio.ensure_future(vm.remove("gpu"))
        await notified(vm)
        letting_go = asyncio.ensure_future(eject(vm, 0b10))
        await asyncio.sleep(0)
        task = asyncio.ensure_future(vm.add(device))
        assert await look(vm) == [1]
        await asyncio.gather(removing, letting_go)
        assert await task == "gpu"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("step", [OUT_OF_ITS_GROUP, CLOSED], ids=itemgetter(1))
async def test_who_removes_what_is_on_its_way_out_waits_until_it_has_gone(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, step: Step, force: bool
) -> None:
    """Who asked for it before was cancelled. It is the host that has it now, and not the guest."""
    kernel.add(FIRST)
    async with VM(config("s", devices=(DeviceConfig(path=kernel.path(FIRST), id="gpu"),))) as vm:
        await vm.start()
        with slow_to_go(monkeypatch, step) as (going, may_go):
            asked = asyncio.ensure_future(vm.remove("gpu"))
            await notified(vm)
            asked.cancel()
            letting_go = asyncio.ensure_future(eject(vm, 0b10))
            await until(going.is_set)
            removing = asyncio.ensure_future(vm.remove("gpu", timeout=0.01, force=force))
            assert not (await asyncio.wait([removing], timeout=0.2))[0]
            may_go.set()
            await asyncio.gather(removing, letting_go)
        assert kernel.at_rest
        with pytest.raises(KeyError):
            await vm.remove("gpu", timeout=0.01)


async def test_who_is_told_that_a_device_was_not_added_is_told_when_it_has_gone(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest lets go of it, as somebody else has asked, without a look at it."""
    kernel.add(FIRST)
    async with VM(config("s")) as vm:
        await vm.start()
        with slow_to_go(monkeypatch) as (going, may_go):
            adding = asyncio.ensure_future(vm.add(DeviceConfig(path=kernel.path(FIRST), id="gpu"), timeout=None))
            await notified(vm)
            removing = asyncio.ensure_future(vm.remove("gpu"))
            await notified(vm)
            letting_go = asyncio.ensure_future(eject(vm, 0b10))
            await until(going.is_set)
            adding.cancel()
            assert not (await asyncio.wait([adding], timeout=0.2))[0]
            may_go.set()
            await asyncio.gather(removing, letting_go)
        await asyncio.wait([adding])
        assert adding.cancelled()
        assert kernel.at_rest


async def test_a_guest_that_lets_go_as_its_machine_goes_takes_nothing_out_twice(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, group in ((FIRST, 7), (SECOND, 8)):
        kernel.add(address, group)
    devices = tuple(DeviceConfig(path=kernel.path(address)) for address in (FIRST, SECOND))
    async with VM(config("s", devices=devices)) as vm:
        await vm.start()
        machine = vm.machine
        for id_ in ("device0", "device1"):
            with pytest.raises(HotplugTimeout):
                await vm.remove(id_, timeout=0.01)
        assert machine.board.slots is not None
        with slow_to_go(monkeypatch) as (going, _):
            closing = asyncio.ensure_future(vm.kill())
            leaving = asyncio.ensure_future(vm.__aexit__(None, None, None))
            await until(going.is_set)
            assert machine.board.slots.write(0, (0b100).to_bytes(4, "little")) is None
        await asyncio.gather(closing, leaving)
        assert EventKind.DEVICE_ERROR not in [e.kind async for e in vm.events(from_start=True)]


def _denied(path: str, code: int) -> Callable[[FakeKernel, FakeDevice], None]:
    def deny(kernel: FakeKernel, _: FakeDevice) -> None:
        kernel.denied[path] = code

    return deny


def _set(name: str, value: object) -> Callable[[FakeKernel, FakeDevice], None]:
    return lambda kernel, device: setattr(kernel if hasattr(kernel, name) else device, name, value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_denied("/dev/vfio/vfio", errno.ENOENT), r"opening VFIO.*modprobe vfio-pci"),
        (_denied("/dev/vfio/7", errno.EBUSY), r"opening IOMMU group 7.*perhaps another VM, has it"),
        (_denied("/dev/vfio/7", errno.EACCES), r"opening IOMMU group 7.*group that owns it"),
        (_set("unviable", {7}), r"the host still uses others of the group of IOMMU group 7"),
        (_set("unsafe_interrupts", False), "allow_unsafe_interrupts"),
        (_set("lock_limit", RAM - 1), r"letting host devices reach 4194304 bytes.*ulimit -l"),
        (_set("kvm_refuses", True), "telling KVM of a host device"),
        (_set("fail_reset", True), r"resetting 0000:01:00\.0"),
    ],
)
async def test_what_the_host_refuses_is_said_and_leaves_nothing(
    kernel: FakeKernel, broken: Callable[[FakeKernel, FakeDevice], None], message: str
) -> None:
    broken(kernel, kernel.add(FIRST))
    async with VM(config("s")) as vm:
        await vm.start()
        slots = taken(vm)
        with pytest.raises(HostError, match=message):
            await vm.add(DeviceConfig(path=kernel.path(FIRST)))
        assert kernel.at_rest
        assert vendor(vm, 1) == 0xFFFF
        assert not vm.config.devices
        assert taken(vm) == slots
        await counts_on(vm)


async def test_a_device_that_the_hosts_driver_holds_and_one_that_is_not_there(kernel: FakeKernel) -> None:
    kernel.add(FIRST, driver="nvme")
    async with VM(config("s")) as vm:
        await vm.start()
        with pytest.raises(HostError, match="driver nvme holds it"):
            await vm.add(DeviceConfig(path=kernel.path(FIRST)))
        with pytest.raises(HostError, match=r"looking for a PCI device .*`lspci -D` lists them"):
            await vm.add(DeviceConfig(path=Path("/nowhere/device")))
        assert kernel.at_rest


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({}, {"pci_device_id": 1}, "slot 1 of segment 0 is given to two"),
        ({}, {"pci_segment": 1}, "no segment 1"),
        ({}, {"id": "there"}, "names two devices"),
        ({}, {"iommu": True}, "behind the IOMMU"),
        ({"balloon": BalloonConfig(size=1 << 20)}, {}, r"balloon: does not go with devices of the host"),
        ({"platform": PlatformConfig(iommufd=True, vfio_p2p_dma=True)}, {}, r"platform\.vfio_p2p_dma"),
    ],
)
async def test_what_cannot_be_is_refused_before_the_host_is_asked(
    kernel: FakeKernel, tmp_path: Path, changes: dict[str, Any], device: dict[str, Any], message: str
) -> None:
    hardware = kernel.add(FIRST)
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    disk = DiskConfig(path=tmp_path / "image", id="there", pci_device_id=1)
    async with VM(config("s", disks=(disk,), **changes)) as vm:
        await vm.start()
        with pytest.raises(ConfigError, match=message):
            await vm.add(DeviceConfig(path=kernel.path(FIRST), **device))
        assert not hardware.opened
        assert not vm.config.devices


async def test_a_balloon_does_not_come_to_a_guest_whose_memory_is_locked(kernel: FakeKernel) -> None:
    kernel.add(FIRST)
    async with VM(config("s", devices=(DeviceConfig(path=kernel.path(FIRST)),))) as vm:
        with pytest.raises(ConfigError, match="does not go with devices of the host"):
            await vm.add(BalloonConfig(size=1 << 20))


async def test_a_segment_that_is_full_is_said_before_the_host_is_asked(kernel: FakeKernel, tmp_path: Path) -> None:
    hardware = kernel.add(FIRST)
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    disk = DiskConfig(path=tmp_path / "image", readonly=True)
    async with VM(config("s", disks=(disk,) * 31)) as vm:
        await vm.start()
        with pytest.raises(UsageError, match="segment 0 is full"):
            await vm.add(DeviceConfig(path=kernel.path(FIRST)))
        assert not hardware.opened


async def test_registers_that_find_no_room_leave_nothing(kernel: FakeKernel) -> None:
    kernel.add(FIRST, sizes=(1 << 60, 0, 0, 0, 0, 0))
    async with VM(config("s")) as vm:
        await vm.start()
        before = descriptors()
        with pytest.raises(UsageError, match="no room"):
            await vm.add(DeviceConfig(path=kernel.path(FIRST), x_exclude_mmap_bars=(0,)))
        assert kernel.at_rest
        assert vendor(vm, 1) == 0xFFFF
        assert descriptors() <= before
        await counts_on(vm)


async def test_the_same_device_is_not_given_twice(kernel: FakeKernel) -> None:
    kernel.add(FIRST)
    device = DeviceConfig(path=kernel.path(FIRST))
    async with VM(config("s", devices=(device,))) as vm:
        await vm.start()
        with pytest.raises(ConfigError, match=r"0000:01:00\.0 is this guest's already, as 'device0'"):
            await vm.add(device)
        assert [kind for kind, _ in kernel.open_fds.values()].count("device") == 1
        assert vendor(vm, 1) == 0x8086


async def test_it_stays_over_a_reset_in_its_slot(kernel: FakeKernel) -> None:
    hardware = kernel.add(FIRST)
    async with VM(config("s", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await vm.add(DeviceConfig(path=kernel.path(FIRST), pci_device_id=9, id="late"), timeout=0)
        resets = hardware.resets
        vm.machine.bus.write(Space.PIO, 0x600, b"\x01")
        await event(vm, EventKind.REBOOTED)
        assert vm.machine.devices.address("late") == PciAddress(0, 9)
        assert vendor(vm, 9) == 0x8086
        assert hardware.resets > resets
        assert hardware.opened == 1
        assert kernel.dma == {0: (vm.machine.memory.regions[0].host, RAM)}
        await removed(vm, "late", [9])
        assert kernel.at_rest


async def test_a_reset_takes_what_was_asked_for(kernel: FakeKernel) -> None:
    kernel.add(FIRST)
    async with VM(config("s", on_reboot=RebootPolicy.RESTART, devices=(DeviceConfig(path=kernel.path(FIRST)),))) as vm:
        await vm.start()
        removal = asyncio.ensure_future(vm.remove("device0", timeout=None))
        await notified(vm)
        vm.machine.bus.write(Space.PIO, 0x600, b"\x01")
        await event(vm, EventKind.REBOOTED)
        await asyncio.wait_for(removal, LONG)
        assert vendor(vm, 1) == 0xFFFF
        assert kernel.at_rest


async def test_a_guest_that_does_not_let_go_loses_it_by_force_or_at_its_end(kernel: FakeKernel) -> None:
    hardware = kernel.add(FIRST)
    device = DeviceConfig(path=kernel.path(FIRST))
    async with VM(config("s")) as vm:
        await vm.start()
        for force in (True, False):
            await added(vm, device, [1])
            await drive(vm, 1)
            with pytest.raises(HotplugTimeout, match="has not let go of it within"):
                await vm.remove("device0", timeout=0.05)
            assert hardware.irqs
            assert kernel.dma
            if force:
                await vm.remove("device0", timeout=0.05, force=True)
                assert kernel.at_rest
                assert vendor(vm, 1) == 0xFFFF
                assert await let_go(vm) == [1]
        removal = asyncio.ensure_future(vm.remove("device0", timeout=None))
        await notified(vm)
        await vm.kill("enough")
        with pytest.raises(StateError, match="the guest has ended"):
            await removal
    assert kernel.at_rest
    assert not hardware.irqs


async def test_a_guest_that_lets_go_late_is_heeded(kernel: FakeKernel) -> None:
    kernel.add(FIRST)
    async with VM(config("s", devices=(DeviceConfig(path=kernel.path(FIRST)),))) as vm:
        await vm.start()
        with pytest.raises(HotplugTimeout):
            await vm.remove("device0", timeout=0.05)
        await eject(vm, 0b10)
        await event(vm, EventKind.DEVICE_REMOVED)
        assert kernel.at_rest


async def test_before_it_runs_and_while_it_is_paused(kernel: FakeKernel) -> None:
    for address, group in ((FIRST, 7), (SECOND, 8)):
        kernel.add(address, group)
    async with VM(config("s")) as vm:
        await vm.add(DeviceConfig(path=kernel.path(FIRST)))
        await vm.remove("device0")
        assert kernel.at_rest
        await vm.add(DeviceConfig(path=kernel.path(FIRST)))
        await vm.start()
        await vm.pause()
        assert await vm.add(DeviceConfig(path=kernel.path(SECOND))) == "device1"
        await vm.resume()
        assert await look(vm) == [2]
        await vm.pause()
        await vm.remove("device0", force=True)
        assert vendor(vm, 1) == 0xFFFF


async def test_the_end_of_a_guest_waits_for_one_that_is_just_taken(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.add(FIRST)
    async with VM(config("s")) as vm:
        await vm.start()
        loop, real = asyncio.get_running_loop(), kernel.open
        ended: list[asyncio.Future[object]] = []

        def opened(path: str) -> int:
            loop.call_soon_threadsafe(lambda: ended.append(asyncio.ensure_future(vm.kill("enough"))))
            return real(path)

        monkeypatch.setattr(kernel, "open", opened)
        with pytest.raises(StateError):
            await vm.add(DeviceConfig(path=kernel.path(FIRST)))
        await until(lambda: bool(ended))
        await asyncio.gather(*ended)


async def test_persistent_memory_is_reached_while_it_is_there(kernel: FakeKernel, tmp_path: Path) -> None:
    kernel.add(FIRST)
    file = tmp_path / "image"
    file.write_bytes(bytes(4 << 20))
    async with VM(config("s", devices=(DeviceConfig(path=kernel.path(FIRST)),))) as vm:
        await vm.start()
        for _ in range(2):
            await vm.add(PmemConfig(file=file), timeout=0)
            ram, pmem = vm.machine.memory.regions
            assert kernel.dma == {region.gpa: (region.host, region.size) for region in (ram, pmem)}
            await look(vm)
            await removed(vm, "pmem0", [2])
            assert kernel.dma == {0: (ram.host, RAM)}


async def test_persistent_memory_that_cannot_be_locked_does_not_come(kernel: FakeKernel, tmp_path: Path) -> None:
    kernel.add(FIRST)
    file = tmp_path / "image"
    file.write_bytes(bytes(4 << 20))
    async with VM(config("s", devices=(DeviceConfig(path=kernel.path(FIRST)),))) as vm:
        await vm.start()
        kernel.lock_limit = RAM
        with pytest.raises(HostError, match="letting host devices reach"):
            await vm.add(PmemConfig(file=file))
        assert [region.ram for region in vm.machine.memory.regions] == [True]
        assert kernel.dma == {0: (vm.machine.memory.regions[0].host, RAM)}
        await counts_on(vm)


def block(start: int, number: int, count: int, kind: Kind) -> bytes:
    return struct.pack("<H6xQH6x", kind, start + number * BLOCK_SIZE, count)


def reached(vm: VM, kernel: FakeKernel) -> list[tuple[int, int]]:
    """(address, bytes) of what the host's IOMMU maps, where the guest has it."""
    for address, (host, size) in kernel.dma.items():
        assert vm.machine.memory.host_address(address, size) == host
    return sorted((address, size) for address, (_, size) in kernel.dma.items())


@pytest.mark.parametrize("segment", [0, 1])
async def test_blocks_of_virtio_mem_are_reached_while_they_are_plugged(kernel: FakeKernel, segment: int) -> None:
    """In the second segment by way of the virtual IOMMU, whose driver is not there yet."""
    kernel.add(FIRST)
    memory = MemoryConfig(RAM, hotplug_size=128 << 20, hotplug_method=HotplugMethod.VIRTIO_MEM)
    platform = PlatformConfig(num_pci_segments=2, iommu_segments=(1,)) if segment else PlatformConfig()
    async with VM(config("s", memory=memory, platform=platform)) as vm:
        await vm.start()
        await vm.resize(memory=RAM + (16 << 20), timeout=0)
        mem = vm.device("mem", MemDevice)
        driver = await start_driver(vm, "mem")
        start = vm.machine.memory.regions[-1].gpa

        async def ask(kind: Kind, number: int = 0, count: int = 0) -> int:
            answer = await driver.request(0, [block(start, number, count, kind)], [10])
            return int.from_bytes(answer[:2], "little")

        def expected(*numbers: int) -> list[tuple[int, int]]:
            return [(0, RAM), *((start + number * BLOCK_SIZE, BLOCK_SIZE) for number in numbers)]

        assert await ask(Kind.PLUG, 2, 3) == Answer.ACK
        await added(vm, DeviceConfig(path=kernel.path(FIRST), pci_segment=segment, id="gpu"), [2 - segment], segment)
        assert reached(vm, kernel) == expected(2, 3, 4), "no block that is not plugged is locked"
        assert await ask(Kind.PLUG, 8, 2) == Answer.ACK
        assert reached(vm, kernel) == expected(2, 3, 4, 8, 9)
        assert await ask(Kind.UNPLUG, 3, 1) == Answer.ACK
        assert reached(vm, kernel) == expected(2, 4, 8, 9)
        kernel.lock_limit = sum(size for _, size in expected(2, 4, 8, 9)) + BLOCK_SIZE
        assert await ask(Kind.PLUG, 20, 2) == (Answer.ACK if segment else Answer.NACK)
        if not segment:
            assert mem.blocks.plugged == 4 * BLOCK_SIZE, "what cannot be locked is not plugged"
            assert reached(vm, kernel) == expected(2, 4, 8, 9)
            await event(vm, EventKind.DEVICE_ERROR)
        assert await ask(Kind.UNPLUG_ALL) == Answer.ACK
        assert reached(vm, kernel) == expected()
        kernel.lock_limit = 1 << 40
        assert await ask(Kind.PLUG, 1, 1) == Answer.ACK
        assert reached(vm, kernel) == expected(1)
        await removed(vm, "gpu", [2 - segment], segment)
        assert kernel.at_rest
        assert await ask(Kind.PLUG, 5, 1) == Answer.ACK
        assert await ask(Kind.UNPLUG, 1, 1) == Answer.ACK


async def test_modules_are_reached_while_they_are_there(kernel: FakeKernel) -> None:
    kernel.add(FIRST)
    device = DeviceConfig(path=kernel.path(FIRST))
    memory = MemoryConfig(RAM, hotplug_size=2 * modules.MODULE, hotplugged_size=modules.MODULE)
    async with VM(config("s", memory=memory, devices=(device,))) as vm:
        await vm.start()
        both = [(modules.START, modules.MODULE), (modules.START + modules.MODULE, modules.MODULE)]
        assert reached(vm, kernel) == [(0, RAM), *both[:1]]
        await modules.resized(vm, 2)
        assert reached(vm, kernel) == [(0, RAM), *both]
        await modules.resized(vm, 0)
        assert reached(vm, kernel) == [(0, RAM)]
        kernel.lock_limit = RAM
        with pytest.raises(HostError, match="letting host devices reach 134217728 bytes"):
            await vm.resize(memory=RAM + modules.MODULE)
        assert reached(vm, kernel) == [(0, RAM)]
        assert modules.there(vm) == 0
        kernel.lock_limit = 1 << 40
        await modules.resized(vm, 1)
        assert reached(vm, kernel) == [(0, RAM), *both[:1]]


async def test_behind_the_virtual_iommu(kernel: FakeKernel, tmp_path: Path) -> None:
    for address, group in ((FIRST, 7), (SECOND, 8)):
        kernel.add(address, group)
    file = tmp_path / "image"
    file.write_bytes(bytes(4 << 20))
    platform = PlatformConfig(num_pci_segments=2, iommu_segments=(1,))
    async with VM(config("s", platform=platform)) as vm:
        await vm.start()
        iommu = vm.machine.devices.iommu
        assert iommu is not None
        for _ in range(2):
            assert await added(vm, DeviceConfig(path=kernel.path(FIRST), pci_segment=1), [1], 1) == "device0"
            (ram,) = vm.machine.memory.regions
            assert kernel.dma == {0: (ram.host, RAM)}, "a device that is in no domain bypasses"
            await vm.add(PmemConfig(file=file), timeout=0)
            await look(vm)
            assert len(kernel.dma) == 2
            await removed(vm, "pmem0", [2])
            assert kernel.dma == {0: (ram.host, RAM)}
            await removed(vm, "device0", [1], 1)
            assert kernel.at_rest
            assert not iommu._behind


async def test_a_snapshot_names_it_and_can_be_had_without_it(kernel: FakeKernel, tmp_path: Path) -> None:
    kernel.add(FIRST)
    async with VM(config("s")) as vm:
        await vm.start()
        await added(vm, DeviceConfig(path=kernel.path(FIRST), id="gpu"), [1])
        with pytest.raises(SnapshotError, match=r"devices of the host \(gpu\) cannot be saved"):
            await vm.snapshot(tmp_path / "s")
        await counts_on(vm)
        await removed(vm, "gpu", [1])
        await vm.snapshot(tmp_path / "s")


async def test_a_device_that_the_host_wants_back_is_told_of_by_its_id(kernel: FakeKernel) -> None:
    hardware = kernel.add(FIRST)
    async with VM(config("s")) as vm:
        await vm.start()
        await added(vm, DeviceConfig(path=kernel.path(FIRST), id="gpu"), [1])
        os.eventfd_write(hardware.irqs[3][0], 1)
        await event(vm, EventKind.DEVICE_ERROR)
        await removed(vm, "gpu", [1])
        await vm.kill()
        (told,) = [e.device async for e in vm.events(from_start=True) if e.kind is EventKind.DEVICE_ERROR]
    assert told == "gpu"


async def test_its_pin_is_the_one_that_the_tables_tell_of(kernel: FakeKernel) -> None:
    """They were written when the slot was empty."""
    hardware = kernel.add(FIRST)
    async with VM(config("s", rng=RngConfig())) as vm:
        tables = vm.machine.memory.read(ACPI_TABLES, ACPI_TABLES_END - ACPI_TABLES)
        await vm.start()
        for slot in (2, 12, 31):
            await added(vm, DeviceConfig(path=kernel.path(FIRST), pci_device_id=slot), [slot])
            function = vm.machine.pci.root.segments[0].functions[slot]
            assert function.interrupt_gsi is not None
            assert function.config.get(0x3C, 1) == function.interrupt_gsi
            address = b"\x0c" + (slot << 16 | 0xFFFF).to_bytes(4, "little")
            assert address + bytes(2) + bytes([0x0A, function.interrupt_gsi]) in tables
            await write(vm, slot, 4, MEMORY, 2)
            hardware.set_pin(True)
            await until(lambda pin=function.interrupt_gsi: bool(levels(vm) >> pin & 1))  # type: ignore[misc]
            hardware.set_pin(False)
            await removed(vm, "device0", [slot])
            assert not levels(vm), "a pin that nobody is on is released"


def levels(vm: VM) -> int:
    """Of the I/O APIC's pins 16 on."""
    board: Any = vm.machine.board
    levels: int = board.legacy.ioapic.snapshot().levels
    return levels >> 16 << 16


async def test_a_guest_that_runs_finds_it_and_lets_go_of_it(kernel: FakeKernel) -> None:
    kernel.add(FIRST)
    async with VM(config("P")) as vm:
        await vm.start()
        for _ in range(5):
            assert await vm.add(DeviceConfig(path=kernel.path(FIRST))) == "device0"
            await vm.remove("device0")
            assert kernel.at_rest
