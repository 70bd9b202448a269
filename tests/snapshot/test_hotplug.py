"""Snapshots know what is plugged in, and what a guest has been asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import (
    VM,
    CpusConfig,
    DiskConfig,
    EventKind,
    ExitReason,
    HotplugMethod,
    HotplugTimeout,
    MemoryConfig,
    PlatformConfig,
    PmemConfig,
    RebootPolicy,
    SnapshotError,
    StateError,
)
from aiovmm.devices.virtio.mem import MemDevice
from aiovmm.machine.architecture import board_of_host
from aiovmm.pci.root import PciAddress
from tests.vm import hotplug_guest as slots
from tests.vm import test_hotplug_modules as modules
from tests.vm import test_hotplug_processors as processors
from tests.vm.guest import config, counts_on, event

pytestmark = [
    pytest.mark.usefixtures("kvm_there"),
    pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers"),
]
MIB = 1 << 20


@pytest.fixture
def disks(tmp_path: Path) -> list[DiskConfig]:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_bytes(bytes(1 << 20))
    return [DiskConfig(path=path, readonly=True) for path in paths]


@pytest.mark.parametrize("gone", [False, True])
async def test_what_was_in_slot_0_of_a_further_segment(tmp_path: Path, disks: list[DiskConfig], gone: bool) -> None:
    """A machine that is made anew has a bridge there, if nothing is: not where the guest has seen none."""
    placed = tuple(replace(disks[n], pci_segment=1, pci_device_id=n, id=f"d{n}") for n in (0, 1))
    async with VM(config("s", disks=placed, platform=PlatformConfig(num_pci_segments=2))) as vm:
        await vm.start()
        if gone:
            await vm.remove("d0", timeout=0, force=True)
        await vm.snapshot(tmp_path / "s")
    async with VM.restore(tmp_path / "s") as vm:
        assert [slots.vendor(vm, slot, 1) for slot in (0, 1)] == [0xFFFF if gone else 0x1AF4, 0x1AF4]
        await vm.resume()
        await counts_on(vm)
        assert await vm.add(replace(disks[2], pci_segment=1, pci_device_id=0 if gone else 2), timeout=0) == "disk0"


async def test_what_came_and_went_is_there_and_not_there(tmp_path: Path, disks: list[DiskConfig]) -> None:
    memory = MemoryConfig(4 * MIB, hotplug_size=512 * MIB)
    made = replace(config("s", disks=tuple(disks[:2])), cpus=CpusConfig(1, 4), memory=memory)
    async with VM(made) as vm:
        await vm.start()
        await processors.resized(vm, 3)
        await modules.resized(vm, 2)
        removal = asyncio.ensure_future(vm.remove("disk0"))
        assert await slots.let_go(vm) == [1]
        await removal
        await vm.add(replace(disks[2], pci_device_id=9), timeout=0)
        vm.machine.memory.write(modules.START + 5000, b"in a module")
        await vm.snapshot(tmp_path / "s")
    async with VM.restore(tmp_path / "s") as again:
        assert [p.id for p in again._plugged()] == ["disk1", "disk0"]
        assert again.machine.devices.address("disk0") == PciAddress(0, 9)
        assert again.machine.devices.address("disk1") == PciAddress(0, 2)
        assert len(again.machine.vcpus) == 3
        assert again.machine.memory.read(modules.START + 5000, 11) == b"in a module"
        await again.resume()
        await counts_on(again)
        assert slots.read(again, slots.SLOTS, 4) == 1 << 9, "the guest has not looked at it yet"
        await processors.resized(again, 2)
        await processors.resized(again, 4)
        await modules.resized(again, 1)
        removal = asyncio.ensure_future(again.remove("disk1"))
        assert await slots.let_go(again) == [2]
        await removal
        await counts_on(again)


async def test_what_a_guest_was_asked_before_can_be_asked_again(tmp_path: Path, disks: list[DiskConfig]) -> None:
    async with VM(config("s", disks=tuple(disks[:1]))) as vm:
        await vm.start()
        with pytest.raises(HotplugTimeout):
            await vm.remove("disk0", timeout=0.01)
        await vm.snapshot(tmp_path / "s")
    async with VM.restore(tmp_path / "s") as again:
        await again.resume()
        await slots.eject(again, 1 << 1)
        assert again.disks, "whoever asked for it is not here"
        slots.read(again, slots.GED, 1)
        removal = asyncio.ensure_future(again.remove("disk0"))
        assert await slots.let_go(again) == [1]
        await asyncio.wait_for(removal, 60)


async def test_memory_of_virtio_mem_is_as_it_was(tmp_path: Path) -> None:
    memory = MemoryConfig(4 * MIB, hotplug_size=256 * MIB, hotplug_method=HotplugMethod.VIRTIO_MEM)
    async with VM(replace(config("s"), memory=memory)) as vm:
        await vm.start()
        await vm.resize(memory=68 * MIB, timeout=0)
        device = vm.device("mem", MemDevice)
        start = device.blocks.start
        device.blocks._plugged[3:5] = b"\1\1"
        vm.machine.memory.write(start + 4 * 2 * MIB, b"plugged")
        await vm.snapshot(tmp_path / "s")
    async with VM.restore(tmp_path / "s") as again:
        device = again.device("mem", MemDevice)
        assert (device.blocks.start, device.blocks.requested, device.blocks.plugged) == (start, 64 * MIB, 4 * MIB)
        assert again.machine.memory.read(start + 4 * 2 * MIB, 7) == b"plugged"
        await again.resume()
        await counts_on(again)


@pytest.mark.parametrize("what", ["processors", "memory"])
async def test_there_is_none_while_something_comes(tmp_path: Path, what: str) -> None:
    """The configuration does not know it yet, and it may be taken out at any moment."""
    memory = MemoryConfig(4 * MIB, hotplug_size=512 * MIB)
    async with VM(replace(config("s"), cpus=CpusConfig(1, 4), memory=memory)) as vm:
        await vm.start()
        if what == "memory":
            task = asyncio.ensure_future(vm.resize(memory=132 * MIB, timeout=None))
            await modules.notified(vm, 0, modules.LOOK)
        else:
            task = asyncio.ensure_future(vm.resize(cpus=2, timeout=None))
            await processors.notified(vm, processors.LOOK)
        for work in (vm.snapshot(tmp_path / "s"), vm.freeze()):
            with pytest.raises(StateError, match=f"{what} of VM 'guest' come or go"):
                await work
        await counts_on(vm)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await vm.snapshot(tmp_path / "s")
    async with VM.restore(tmp_path / "s") as again:
        await again.resume()
        await counts_on(again)


async def test_what_the_guest_did_not_take_goes_when_nobody_is_at_work_on_it(tmp_path: Path) -> None:
    async with VM(replace(config("s"), memory=MemoryConfig(4 * MIB, hotplug_size=512 * MIB))) as vm:
        await vm.start()
        task = asyncio.ensure_future(vm.resize(memory=132 * MIB, timeout=None))
        await modules.notified(vm, 0, modules.LOOK)
        async with vm._transition:
            task.cancel()
            await asyncio.wait([task], timeout=0.05)
            assert len(vm.machine.memory.regions) == 2, "a thread may read it"
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(vm.machine.memory.regions) == 1


@pytest.mark.timeout(5 * slots.LONG)
async def test_persistent_memory_that_came_or_went_waits_for_a_reset(tmp_path: Path) -> None:
    """It lies elsewhere in a machine that is made anew, and so do the windows behind it. Each snapshot waits four times for the
    disk, which others may keep busy, and a reset for four times what it takes (machine.power.LIFE_TO_RESET)."""
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(2 * MIB))
    first, later = (PmemConfig(file=tmp_path / name) for name in "ab")
    async with VM(config("s", pmems=(first,), on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        changes: list[tuple[Callable[[], Awaitable[object]], str]] = [
            (lambda: vm.add(later, timeout=0), "pmem1 cannot be in a snapshot"),
            (lambda: vm.remove("pmem0", timeout=0.01, force=True), "pmem1 cannot be in a snapshot"),
            (lambda: vm.remove("pmem1", timeout=0.01, force=True), "memory of this guest has gone"),
        ]
        await vm.snapshot(tmp_path / "s")
        for reset, (change, said) in enumerate(changes, 1):
            await change()
            with pytest.raises(SnapshotError, match=said):
                await vm.snapshot(tmp_path / "t")
            await counts_on(vm)
            vm.machine.board.ended(ExitReason.REBOOT, "by the guest")
            await event(vm, EventKind.REBOOTED, reset, slots.LONG)
            await vm.snapshot(tmp_path / "t")
    async with VM.restore(tmp_path / "t") as again:
        await again.resume()
        await counts_on(again)
