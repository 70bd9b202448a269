"""Processors that come and go; the test plays the part of the guest's kernel on the bus."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from aiovmm import (
    VM,
    CpusConfig,
    EventKind,
    ExitReason,
    HotplugError,
    HotplugTimeout,
    RebootPolicy,
    StateError,
    UsageError,
    VMConfig,
)
from aiovmm.bus import Space
from aiovmm.errors import KvmError
from aiovmm.kvm import VmFd, vcpu
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.machine.architecture import board_of_host
from aiovmm.machine.hotplug import units
from aiovmm.machine.hotplug.processors import ProcessorHotplug
from aiovmm.machine.processors import Processors
from aiovmm.native import ffi, lib
from tests.open_files import descriptors
from tests.vm.ejected import ejected_and_reset
from tests.vm.guest import config, counts_on, event, until

REGISTERS, GED = 0x1000, 0x604
LOOK, LET_GO, EJECT, TAKEN, REFUSED, KEPT = 2, 4, 8, 0x10, 0x20, 0x40
LONG = 60.0

pytestmark = pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers")


def made(**changes: Any) -> VMConfig:
    return replace(config("s", **changes), cpus=CpusConfig(1, 4))


async def notified(vm: VM, flag: int) -> int:
    """The processor that a kernel would notify, told of as UCHK does."""
    registers = vm.machine.board.processors
    assert registers is not None
    found: list[int] = []

    def told() -> bool:
        ged = vm.machine.bus.read(Space.PIO, GED, 1)
        assert isinstance(ged, bytes)
        found[:] = [n for n, value in enumerate(registers.read(0, 4)) if value & flag and ged[0] & 1]
        return bool(found)

    await until(told, LONG)
    (processor,) = found
    await say(vm, processor, flag)
    return processor


async def say(vm: VM, processor: int, value: int) -> None:
    pending = vm.machine.bus.write(Space.PIO, REGISTERS + processor, bytes([value]))
    if pending is not None:
        await asyncio.wait_for(pending, LONG)


async def resized(vm: VM, count: int) -> None:
    """With a guest that does it."""
    task = asyncio.ensure_future(vm.resize(cpus=count))
    now = len(vm.machine.vcpus)
    while now != count:
        flag, answer, step = (LOOK, TAKEN, 1) if count > now else (LET_GO, EJECT, -1)
        assert await notified(vm, flag) == (now if step > 0 else now - 1)
        await say(vm, now if step > 0 else now - 1, answer)
        now += step
    await task


async def test_processors_come_and_go_and_come_again() -> None:
    async with VM(made()) as vm:
        await vm.start()
        for count in (4, 2, 3, 1, 2):
            await resized(vm, count)
            assert len(vm.machine.vcpus) == vm.config.cpus.boot == count
            assert [vcpu.running for vcpu in vm.machine.vcpus] == [True] * count
            assert sum(vcpu.running for vcpu in vm.machine.kvm_vm.vcpus.values()) == count
            assert len(vm.machine.kvm_vm.vcpus) == 4
            await counts_on(vm)
        await vm.pause()
        await vm.resume()
        await counts_on(vm)
    told = [e.detail async for e in vm.events(from_start=True) if e.kind is EventKind.RESIZED]
    assert told == [f"{count} processors" for count in (4, 2, 3, 1, 2)]


async def test_one_that_goes_while_the_machine_pauses_runs_when_it_comes_again() -> None:
    async with VM(made()) as vm:
        await vm.start()
        await resized(vm, 2)
        await vm.machine.processors.pause()
        await vm.machine.processors.remove(1)
        vm.machine.processors.resume()
        await vm.machine.processors.add(1)
        assert [vcpu.paused for vcpu in vm.machine.vcpus] == [False, False]
        await counts_on(vm)


async def test_one_that_could_not_be_prepared_is_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM has it, and has not been told what processor it is."""
    prepared: list[int] = []
    give = VcpuState.set_packed_cpuid

    def fails(state: VcpuState, packed: bytes) -> None:
        raise KvmError("setting CPUID", 12)

    def gives(state: VcpuState, packed: bytes) -> None:
        give(state, packed)
        prepared.append(state._vcpu.index)

    async with VM(made()) as vm:
        await vm.start()
        monkeypatch.setattr(VcpuState, "set_packed_cpuid", fails)
        with pytest.raises(KvmError):
            await vm.machine.processors.add(1)
        assert len(vm.machine.vcpus) == 1
        assert 1 in vm.machine.kvm_vm.vcpus
        monkeypatch.setattr(VcpuState, "set_packed_cpuid", gives)
        await resized(vm, 2)
        assert prepared == [1]
        await resized(vm, 1)
        await resized(vm, 2)
        assert prepared == [1], "it knows"
        await counts_on(vm)


async def test_one_that_was_given_up_while_kvm_made_it_can_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    making, may_go_on = threading.Event(), threading.Event()
    make = VmFd.open_vcpu

    def make_slowly(vm: VmFd, index: int, id_: int | None = None) -> None:
        making.set()
        may_go_on.wait(LONG)
        make(vm, index, id_)

    async with VM(made()) as vm:
        await vm.start()
        monkeypatch.setattr(VmFd, "open_vcpu", make_slowly)
        task = asyncio.ensure_future(vm.resize(cpus=2))
        await until(making.is_set)
        task.cancel()
        await asyncio.sleep(0)
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(vm.machine.vcpus) == vm.config.cpus.boot == 1
        assert len(vm.machine.kvm_vm.vcpus) == 2, "KVM takes none back, nor makes the same again"
        await resized(vm, 2)
        await counts_on(vm)


@pytest.mark.parametrize("failure", ["native", "memory"])
async def test_one_that_kvm_has_and_we_had_no_memory_for_can_come_later(
    monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    def none(*_arguments: object) -> object:
        if failure == "memory":
            raise MemoryError
        return ffi.NULL

    async with VM(made()) as vm:
        await vm.start()
        before = descriptors()
        with monkeypatch.context() as short:
            short.setattr(vcpu, "room", none) if failure == "memory" else short.setattr(vcpu, "lib", _Without(none))
            with pytest.raises((KvmError, MemoryError)):
                await vm.resize(cpus=2)
        assert len(vm.machine.vcpus) == 1
        assert descriptors() == before + 1, "KVM takes none back, nor makes the same again"
        await resized(vm, 2)
        await counts_on(vm)


class _Without:
    """The native library, that makes no vCPU."""

    def __init__(self, avmm_vcpu_new: object) -> None:
        self.avmm_vcpu_new = avmm_vcpu_new

    def __getattr__(self, name: str) -> object:
        return getattr(lib, name)


async def test_a_guest_that_does_not_take_one_has_none() -> None:
    async with VM(made()) as vm:
        await vm.start()
        with pytest.raises(HotplugTimeout, match="adding processor 1: the guest has not taken it"):
            await vm.resize(cpus=2, timeout=0.05)
        task = asyncio.ensure_future(vm.resize(cpus=2))
        await say(vm, await notified(vm, LOOK), REFUSED)
        with pytest.raises(HotplugError, match="processor 1: the guest does not take it"):
            await task
        assert len(vm.machine.vcpus) == vm.config.cpus.boot == 1
        assert vm.machine.board.processors is not None
        assert vm.machine.board.processors.present == 1
        await counts_on(vm)
        await resized(vm, 2)


async def test_a_guest_that_keeps_one_keeps_it_until_it_lets_go() -> None:
    async with VM(made()) as vm:
        await vm.start()
        await resized(vm, 2)
        task = asyncio.ensure_future(vm.resize(cpus=1))
        await say(vm, await notified(vm, LET_GO), KEPT)
        with pytest.raises(HotplugError, match="processor 1: the guest does not let go of it"):
            await task
        with pytest.raises(HotplugTimeout, match="has not let go of it"):
            await vm.resize(cpus=1, timeout=0.05)
        assert len(vm.machine.vcpus) == 2
        await say(vm, await notified(vm, LET_GO), EJECT)
        assert len(vm.machine.vcpus) == vm.config.cpus.boot == 1


@pytest.mark.parametrize("count", [3, 4])
async def test_one_that_is_to_stay_after_all_stays(count: int) -> None:
    """And a guest that was about to let go of it, and does, is given it back: those that are there are always the first ones."""
    async with VM(made()) as vm:
        await vm.start()
        await resized(vm, 3)
        with pytest.raises(HotplugTimeout, match="has not let go of it"):
            await vm.resize(cpus=2, timeout=0.05)
        assert await notified(vm, LET_GO) == 2
        await resized(vm, count)
        await say(vm, 2, EJECT)
        assert len(vm.machine.vcpus) == vm.config.cpus.boot == count
        assert await notified(vm, LOOK) == 2
        await say(vm, 2, TAKEN)
        await say(vm, 2, EJECT)
        assert [vcpu.index for vcpu in vm.machine.vcpus] == list(range(count))
        await resized(vm, 1)
        await resized(vm, 4)
        await counts_on(vm)


async def test_one_that_is_on_its_way_out_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    goes, may_go = asyncio.Event(), asyncio.Event()
    remove = Processors.remove

    async def remove_slowly(processors: Processors, index: int) -> None:
        goes.set()
        await may_go.wait()
        await remove(processors, index)

    async with VM(made()) as vm:
        await vm.start()
        await resized(vm, 2)
        with pytest.raises(HotplugTimeout, match="has not let go of it"):
            await vm.resize(cpus=1, timeout=0.05)
        monkeypatch.setattr(Processors, "remove", remove_slowly)
        ejected = asyncio.ensure_future(say(vm, await notified(vm, LET_GO), EJECT))
        await goes.wait()
        task = asyncio.ensure_future(vm.resize(cpus=3, timeout=0.05))
        await asyncio.sleep(0)
        may_go.set()
        with pytest.raises(HotplugTimeout, match="adding processor 1"):
            await task
        await ejected
        assert [vcpu.index for vcpu in vm.machine.vcpus] == [0]
        await resized(vm, 3)


async def test_patience_is_with_the_guest_and_not_with_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has let go of one in time, which takes longer than that to go."""
    goes, out_of_patience, remove = asyncio.Event(), asyncio.Event(), Processors.remove

    async def remove_slowly(processors: Processors, index: int) -> None:
        goes.set()
        await out_of_patience.wait()
        await asyncio.sleep(0.01)
        await remove(processors, index)

    async def wait(*_: object) -> None:
        await goes.wait()
        out_of_patience.set()
        raise HotplugTimeout("removing processor 1", "the guest has not let go of it", "")

    async with VM(made()) as vm:
        await vm.start()
        await resized(vm, 2)
        monkeypatch.setattr(Processors, "remove", remove_slowly)
        monkeypatch.setattr(units, "wait_for_guest", wait)
        await resized(vm, 1)
        assert [vcpu.index for vcpu in vm.machine.vcpus] == [0]
        assert vm.config.cpus.boot == 1


async def test_a_guest_ejects_only_what_is_asked_of_it() -> None:
    async with VM(made()) as vm:
        await vm.start()
        await resized(vm, 3)
        for value in (0xFF, EJECT, KEPT, TAKEN):
            for processor in range(4):
                await say(vm, processor, value)
        assert len(vm.machine.vcpus) == 3
        await counts_on(vm)


async def test_over_a_reset_they_stay() -> None:
    async with VM(made(on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await resized(vm, 3)
        task = asyncio.ensure_future(vm.resize(cpus=4, timeout=None))
        await notified(vm, LOOK)
        vm.machine.bus.write(Space.PIO, 0x600, b"\x01")
        with pytest.raises(HotplugError, match="reset meanwhile"):
            await asyncio.wait_for(task, LONG)
        await event(vm, EventKind.REBOOTED)
        assert len(vm.machine.vcpus) == 3
        await resized(vm, 2)


async def test_who_asks_in_the_middle_of_a_reset_asks_the_next_machine() -> None:
    async with VM(made(on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        vm._ending.guest_ended(ExitReason.REBOOT, "as by a reset")
        await until(lambda: vm._power.machine is None)
        task = asyncio.ensure_future(vm.resize(cpus=2, timeout=None))
        await asyncio.sleep(0)
        with pytest.raises(StateError, match="is being reset"):
            await vm.memory.resident()
        await event(vm, EventKind.REBOOTED)
        assert await notified(vm, LOOK) == 1
        await say(vm, 1, TAKEN)
        await asyncio.wait_for(task, LONG)
        assert len(vm.machine.vcpus) == vm.config.cpus.boot == 2


async def test_one_that_a_guest_lets_go_of_as_it_is_reset_goes_before_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with VM(made(on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await resized(vm, 3)
        with pytest.raises(HotplugTimeout):
            await vm.resize(cpus=2, timeout=0.05)
        await ejected_and_reset(vm, ProcessorHotplug, lambda: say(vm, 2, EJECT), monkeypatch)
        assert len(vm.machine.vcpus) == vm.config.cpus.boot == 2
    assert [told.detail async for told in vm.events(from_start=True) if told.kind is EventKind.DEVICE_ERROR] == []


async def test_what_cannot_be_is_refused() -> None:
    async with VM(made()) as vm:
        with pytest.raises(StateError, match="while it runs"):
            await vm.resize(cpus=2)
        await vm.start()
        for count in (0, 5, "2", True):
            with pytest.raises(UsageError, match="it can have 1 to 4 processors"):
                await vm.resize(cpus=count)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"takes cpus=, memory="):
            await vm.resize()
    async with VM(config("s")) as vm:
        await vm.start()
        with pytest.raises(UsageError, match=r"CpusConfig\(max=\)"):
            await vm.resize(cpus=2)
