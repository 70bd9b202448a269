"""Memory modules that come and go; the test plays the part of the guest's kernel on the bus."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from aiovmm import (
    VM,
    ConfigError,
    EventKind,
    GuestFault,
    HotplugError,
    HotplugTimeout,
    MemoryConfig,
    RebootPolicy,
    StateError,
    UsageError,
    VMConfig,
)
from aiovmm.bus import Space
from aiovmm.config.options import parse_memory
from aiovmm.machine.architecture import board_of_host
from aiovmm.machine.hotplug.modules import ModuleHotplug
from aiovmm.machine.hotplug.places import at_start, modules
from aiovmm.memory import GuestMemory
from aiovmm.native import lib
from tests.vm.ejected import ejected_and_reset
from tests.vm.guest import config, counts_on, event, until

REGISTERS, GED = 0xB00, 0x604
LOOK, LET_GO, EJECT, TAKEN, REFUSED, KEPT = 2, 4, 8, 0x10, 0x20, 0x40
LONG = 60.0
MIB = 1 << 20
RAM, MODULE, START = 4 * MIB, 128 * MIB, 4 << 30

pytestmark = pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers")


def made(there: int = 0, *, shared: bool = False, **changes: Any) -> VMConfig:
    memory = MemoryConfig(RAM, shared=shared, hotplug_size=4 * MODULE, hotplugged_size=there * MODULE)
    return replace(config("s", **changes), memory=memory)


async def say(vm: VM, module: int, value: int) -> None:
    pending = vm.machine.bus.write(Space.PIO, REGISTERS + module, bytes([value]))
    if pending is not None:
        await asyncio.wait_for(pending, LONG)


async def notified(vm: VM, module: int, flag: int) -> None:
    """As UCHK is, and tells."""

    def told() -> bool:
        ged, flags = vm.machine.bus.read(Space.PIO, GED, 1), vm.machine.bus.read(Space.PIO, REGISTERS + module, 1)
        assert isinstance(ged, bytes)
        assert isinstance(flags, bytes)
        return bool(ged[0] & 2 and flags[0] & flag)

    await until(told, LONG)
    await say(vm, module, flag)


async def resized(vm: VM, count: int) -> None:
    """With a guest that does it."""
    now = there(vm)
    task = asyncio.ensure_future(vm.resize(memory=RAM + count * MODULE))
    while now != count:
        module, flag, answer = (now, LOOK, TAKEN) if count > now else (now - 1, LET_GO, EJECT)
        await notified(vm, module, flag)
        await say(vm, module, answer)
        now += 1 if count > now else -1
    await task


def there(vm: VM) -> int:
    return len([region for region in vm.machine.memory.regions if region.gpa >= START])


@pytest.mark.parametrize("shared", [False, True])
async def test_modules_come_and_go(shared: bool) -> None:
    async with VM(made(1, shared=shared)) as vm:
        await vm.start()
        for count in (3, 2, 4, 0, 1):
            await resized(vm, count)
            regions = [(r.gpa, r.size) for r in vm.machine.memory.regions[1:]]
            assert regions == [(START + n * MODULE, MODULE) for n in range(count)]
            assert vm.config.memory.hotplugged_size == count * MODULE
            if count:
                vm.machine.memory.write(START + count * MODULE - 4, b"last")
            await counts_on(vm)
    told = [e.detail async for e in vm.events(from_start=True) if e.kind is EventKind.RESIZED]
    assert told == [f"{RAM + count * MODULE} bytes of memory" for count in (3, 2, 4, 0, 1)]


async def test_a_guest_that_does_not_take_one_has_none() -> None:
    async with VM(made()) as vm:
        await vm.start()
        with pytest.raises(HotplugTimeout, match="adding memory module 0: the guest has not taken it"):
            await vm.resize(memory=RAM + MODULE, timeout=0.05)
        assert there(vm) == 0
        task = asyncio.ensure_future(vm.resize(memory=RAM + MODULE))
        await notified(vm, 0, LOOK)
        await say(vm, 0, REFUSED)
        with pytest.raises(HotplugError, match="does not take it"):
            await task
        assert there(vm) == vm.config.memory.hotplugged_size == 0
        await counts_on(vm)


async def test_a_guest_that_keeps_one_keeps_it_until_it_lets_go() -> None:
    async with VM(made(2)) as vm:
        await vm.start()
        task = asyncio.ensure_future(vm.resize(memory=RAM))
        await notified(vm, 1, LET_GO)
        await say(vm, 1, KEPT)
        with pytest.raises(HotplugError, match="memory module 1: the guest does not let go of it"):
            await task
        assert there(vm) == 2
        with pytest.raises(HotplugTimeout, match="has not let go"):
            await vm.resize(memory=RAM, timeout=0.05)
        await say(vm, 1, EJECT)
        assert there(vm) == 1
        assert vm.config.memory.hotplugged_size == MODULE


async def test_over_a_reset_they_stay() -> None:
    async with VM(made(on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await resized(vm, 2)
        vm.machine.bus.write(Space.PIO, 0x600, b"\x01")
        await event(vm, EventKind.REBOOTED)
        assert there(vm) == 2
        assert vm.machine.board.modules is not None
        assert vm.machine.board.modules.present == 2
        await resized(vm, 1)


async def test_one_that_a_guest_lets_go_of_as_it_is_reset_goes_before_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else its memory would be given back where another machine's lies by then."""
    async with VM(made(2, on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        with pytest.raises(HotplugTimeout):
            await vm.resize(memory=RAM + MODULE, timeout=0.05)
        await ejected_and_reset(vm, ModuleHotplug, lambda: say(vm, 1, EJECT), monkeypatch)
        assert there(vm) == 1
        assert vm.config.memory.hotplugged_size == MODULE
    assert [told.detail async for told in vm.events(from_start=True) if told.kind is EventKind.DEVICE_ERROR] == []


async def test_what_cannot_be_is_refused() -> None:
    async with VM(made()) as vm:
        with pytest.raises(StateError, match="while it runs"):
            await vm.resize(memory=RAM + MODULE)
        await vm.start()
        for size in (0, RAM + 1, RAM + 5 * MODULE, RAM - MODULE, "1G"):
            with pytest.raises(UsageError, match=r"it can have 4194304 to \d+ bytes, in modules of 134217728"):
                await vm.resize(memory=size)  # type: ignore[arg-type]


async def test_what_is_no_whole_module_stays_out(caplog: pytest.LogCaptureFixture) -> None:
    wanted = replace(made(), memory=MemoryConfig(RAM, hotplug_size=2 * MODULE + 100 * MIB))
    async with VM(wanted) as vm:
        await vm.start()
        assert "comes in modules of 128M, of 373293056 bytes 268435456" in caplog.text
        with pytest.raises(UsageError, match=f"it can have {RAM} to {RAM + 2 * MODULE} bytes"):
            await vm.resize(memory=RAM + 2 * MODULE + 100 * MIB)
        await resized(vm, 2)
        assert vm.machine.memory.read(START + 2 * MODULE - 4, 4) == bytes(4)
        with pytest.raises(GuestFault):
            vm.machine.memory.read(START + 2 * MODULE, 4)


async def test_where_no_module_can_come_none_is_asked_for() -> None:
    async with VM(replace(made(), memory=MemoryConfig(RAM, hotplug_size=100 * MIB))) as vm:
        await vm.start()
        await counts_on(vm)
        with pytest.raises(UsageError, match="has no memory to come"):
            await vm.resize(memory=RAM + 100 * MIB)


def test_a_lot_of_memory_comes_in_larger_modules() -> None:
    memory = MemoryConfig(1 << 30, hotplug_size=100 << 30, hotplugged_size=5 << 30)
    sizes = [size for _, size in modules(memory, START)]
    assert len(sizes) == 200
    assert sum(sizes) == 100 << 30
    assert memory.module_size == 512 * MIB
    assert sum(size for _, size in at_start(memory, START)) == 5 << 30
    uneven = MemoryConfig(1 << 30, hotplug_size=(32 << 30) + MODULE, hotplugged_size=(32 << 30) + MODULE)
    assert [size for _, size in modules(uneven, START)][-1] == MODULE
    assert len(at_start(uneven, START)) == len(modules(uneven, START)) == 129


@pytest.mark.parametrize(
    "text",
    [
        "hotplug_size=1001",
        "hotplug_size=100M,hotplugged_size=100M",
        "hotplug_method=virtio-mem,hotplug_size=100M",
        "hotplug_size=1G,hotplugged_size=64M",
        "hotplugged_size=128M",
    ],
)
def test_options_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="hotplug"):
        parse_memory(text)


def test_the_method_of_the_reference_is_the_default() -> None:
    assert parse_memory("size=512M,hotplug_size=1G") == MemoryConfig(512 * MIB, hotplug_size=1 << 30)


async def test_where_a_module_was_nothing_else_comes_to_be() -> None:
    """A request of the guest's may be under way to it, whose data must not reach another guest."""
    async with VM(made()) as vm:
        await vm.start()
        await resized(vm, 1)
        memory = vm.machine.memory
        (module,) = (region for region in memory.regions if region.gpa == START)
        memory.write(START, b"module")
        await resized(vm, 0)
        with pytest.raises(GuestFault):
            memory.slice(START, 1)
        assert lib.avmm_mem_resident(module.host, module.size) == 0
        other = GuestMemory.create([(0, MODULE)], shared=False)
        for region in other.regions:
            assert region.host >= module.host + module.size or region.host + region.size <= module.host
        other.close()
        await resized(vm, 1)
        assert [region.host for region in memory.regions if region.gpa == START] == [module.host]
        assert memory.read(START, 6) == bytes(6)
        await counts_on(vm)
    assert module.mapping.closed
