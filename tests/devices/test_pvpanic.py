"""A guest whose kernel says itself that it has panicked."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm import VM, ConfigError, EventKind, ExitReason, PvpanicConfig, RngConfig
from aiovmm.bus import Space
from aiovmm.devices.pvpanic import CRASH_LOADED, PANICKED, Pvpanic
from aiovmm.errors import SnapshotError
from tests.limits import HANGS
from tests.vm.guest import config, event

ECAM_SLOT = 1 << 15


def register(vm: VM, slot: int) -> int:
    """The address of BAR 0, after the driver has switched decoding on; checks the identity that Linux's driver looks for."""
    function = vm.machine.pci.root.segments[0].function(slot)
    assert function is not None
    assert function.config.data[:4] == bytes.fromhex("361b1100")
    bus, base = vm.machine.bus, vm.machine.pci.root.segments[0].plan.ecam_base + slot * ECAM_SLOT
    bus.write(Space.MMIO, base + 4, b"\x02\0")
    return function.config.get(0x10, 4)


async def test_a_panic_is_an_event_and_the_reset_after_it_an_end() -> None:
    async with VM(replace(config("her"), pvpanic=PvpanicConfig())) as vm:
        await vm.start()
        await vm.serial.expect(b"hello")
        at = register(vm, 1)
        assert vm.machine.bus.read(Space.MMIO, at, 1) == b"\x03"
        for _ in range(3):
            vm.machine.bus.write(Space.MMIO, at, b"\x01")
        await event(vm, EventKind.PANICKED)
        vm.serial.write(b"q")
        status = await asyncio.wait_for(vm.wait(), HANGS)
        told = [e async for e in vm.events(from_start=True) if e.kind is EventKind.PANICKED]
    assert status.reason is ExitReason.PANIC
    assert [e.detail for e in told] == ["reported by pvpanic"]


async def test_a_crash_kernel_goes_on_and_its_reset_is_no_panic() -> None:
    async with VM(replace(config("her"), pvpanic=PvpanicConfig(pci_device_id=9))) as vm:
        await vm.start()
        await vm.serial.expect(b"hello")
        vm.machine.bus.write(Space.MMIO, register(vm, 9), b"\x02")
        await event(vm, EventKind.PANICKED)
        vm.serial.write(b"q")
        status = await asyncio.wait_for(vm.wait(), HANGS)
    assert status.reason is ExitReason.REBOOT


async def test_where_it_is_the_console_is_not_believed() -> None:
    """A user of the guest can print what a kernel does."""
    async with VM(replace(config("cr Kernel panic - not syncing: x"), pvpanic=PvpanicConfig())) as vm:
        await vm.start()
        status = await asyncio.wait_for(vm.wait(), HANGS)
    assert status.reason is ExitReason.REBOOT


async def test_two_devices_cannot_have_its_slot() -> None:
    with pytest.raises(ConfigError, match=r"pvpanic.pci_device_id: slot 3 of segment 0 is given to two"):
        replace(config("o"), pvpanic=PvpanicConfig(pci_device_id=3), rng=RngConfig(pci_device_id=3))


def test_it_has_no_memory_to_be_translated() -> None:
    with pytest.raises(ConfigError, match=r"pvpanic.iommu"):
        PvpanicConfig(iommu=True)


@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=8)), max_size=30))
def test_whatever_is_written_each_event_is_told_once(accesses: list[tuple[bool, bytes]]) -> None:
    told: list[int] = []
    device = Pvpanic(told.append)
    written = 0
    for writes, data in accesses:
        if writes:
            device.write(0, data)
            written |= data[0] & 3
        else:
            assert device.read(0, len(data)) == b"\x03".ljust(len(data), b"\0")
    assert sorted(told) == [bit for bit in (PANICKED, CRASH_LOADED) if written & bit]
    again: list[int] = []
    other = Pvpanic(again.append)
    other.load(device.save())
    other.write(0, b"\x03")
    assert sorted([*told, *again]) == [PANICKED, CRASH_LOADED]


@pytest.mark.parametrize("state", [{}, {"told": 4}, {"told": "x"}, {"told": 0, "more": 1}])
def test_state_that_cannot_be_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(SnapshotError, match="pvpanic"):
        Pvpanic(lambda _: None).load(state)
