"""How a guest's end is told: by ExitStatus, and by events in their order."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator

import pytest

from aiovmm import VM, Event, EventKind, ExitReason, HostError, RebootPolicy, VMState
from aiovmm.kvm import Kvm
from aiovmm.runtime.quota import BURST
from tests.limits import HANGS
from tests.vm.guest import config, counts_on, event

ENDS = {
    "o": (ExitReason.SHUTDOWN, "powered off by ACPI"),
    "r": (ExitReason.REBOOT, "reset by the ACPI reset register"),
    "k": (ExitReason.REBOOT, "reset by the keyboard controller"),
    "Ut": (ExitReason.REBOOT, "triple fault of vCPU 0"),
}
EARLY = (
    "triple fault of vCPU 0, before any user space ran: it is no kernel for this machine, or it failed as it started"
)


@pytest.mark.parametrize("cpus", [1, 4])
@pytest.mark.parametrize("does", ENDS)
async def test_ends_by_the_guest_itself(does: str, cpus: int) -> None:
    async with VM(config("h" + does, cpus)) as vm:
        events = vm.events()
        await vm.start()
        status = await asyncio.wait_for(vm.wait(), 60)
        assert (status.reason, status.detail) == ENDS[does]
        assert status.ok
        assert vm.state is VMState.STOPPED
        assert vm.serial.history == b"hello\n", "no instruction runs after the one that ended it"
        told = [e async for e in events]
    assert [e.kind for e in told] == [EventKind.STARTED, EventKind.STOPPED]
    assert told[-1].status is status
    assert [e async for e in vm.events(from_start=True)] == told
    assert sorted(e.time for e in told) == [e.time for e in told]


@pytest.mark.parametrize("cpus", [1, 4])
@pytest.mark.parametrize("policy", RebootPolicy)
async def test_a_triple_fault_before_user_space_is_an_error(policy: RebootPolicy, cpus: int) -> None:
    """Whatever the policy for reboots: it would only come again."""
    async with VM(config("ht", cpus, on_reboot=policy)) as vm:
        await vm.start()
        status = await asyncio.wait_for(vm.wait(), 60)
        assert (status.reason, status.detail) == (ExitReason.TRIPLE_FAULT, EARLY)
        assert not status.ok
        assert [e.kind async for e in vm.events(from_start=True)] == [EventKind.STARTED, EventKind.STOPPED]


@pytest.mark.parametrize("policy", RebootPolicy)
async def test_a_panic_that_resets_by_a_triple_fault_is_a_panic(policy: RebootPolicy) -> None:
    """As Linux does with reboot=t, before user space too: it is told as what it is."""
    said = "ct Kernel panic - not syncing: no init"
    async with VM(config(said, on_panic=policy)) as vm:
        await vm.start()
        await event(vm, EventKind.PANICKED, 1 if policy is RebootPolicy.EXIT else 2)
        if policy is RebootPolicy.EXIT:
            status = await asyncio.wait_for(vm.wait(), 60)
            assert status.reason is ExitReason.PANIC
            assert "triple fault of vCPU 0" in status.detail


async def test_a_guest_that_cannot_go_on(emulated: bool) -> None:
    async with VM(config("u", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        status = await asyncio.wait_for(vm.wait(), 60)
    assert status.reason is ExitReason.ERROR
    assert not status.ok
    assert "f3 0f b8 03" in status.detail, "the instruction"
    assert ("aiovmm doctor" in status.detail) == emulated


@pytest.mark.parametrize("blamed", [False, True])
async def test_kvm_is_blamed_only_where_it_emulates_all_of_a_guest(
    blamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere it emulates an instruction that touches a device, and the guest's choice of it was odd."""
    monkeypatch.setattr(Kvm, "emulates_guest_code", lambda self: blamed)
    async with VM(config("u")) as vm:
        await vm.start()
        status = await asyncio.wait_for(vm.wait(), 60)
    assert status.reason is ExitReason.ERROR
    assert ("this KVM emulates guest code" in status.detail) == blamed


async def test_a_kernel_that_is_entered_by_pvh() -> None:
    async with VM(config("said by PVH", kernel="pvh")) as vm:
        await vm.start()
        assert (await asyncio.wait_for(vm.wait(), 60)).reason is ExitReason.SHUTDOWN
        assert vm.serial.history == b"said by PVH"


async def test_resets_restart_the_guest_where_the_policy_says_so() -> None:
    async with VM(config("hUt", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await event(vm, EventKind.REBOOTED, 3)
        await vm.kill()
        kinds = [e.kind async for e in vm.events(from_start=True)]
        assert vm.serial.history.startswith(b"hello\nhello\nhello\n"), "the console lives on"
    assert kinds[:4] == [EventKind.STARTED] + [EventKind.REBOOTED] * 3
    assert kinds[-1] is EventKind.STOPPED
    assert set(kinds[4:-1]) <= {EventKind.REBOOTED}


@pytest.mark.parametrize("policy", RebootPolicy)
async def test_a_panic_and_the_policy_for_it(policy: RebootPolicy) -> None:
    said = "cer Kernel panic - not syncing: no init"
    async with VM(config(said, on_panic=policy, on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await event(vm, EventKind.PANICKED)
        vm.serial.write(b"q")
        if policy is RebootPolicy.EXIT:
            status = await asyncio.wait_for(vm.wait(), 60)
            assert status.reason is ExitReason.PANIC
            assert "reset by the ACPI reset register" in status.detail
            assert not status.ok
        else:
            await event(vm, EventKind.PANICKED, 2)
            assert vm.state is VMState.RUNNING
            await vm.kill()
        kinds = [e.kind async for e in vm.events(from_start=True)]
    assert kinds[:2] == [EventKind.STARTED, EventKind.PANICKED]


async def test_a_device_that_raises_is_told_of_and_the_guest_goes_on() -> None:
    async with VM(config("b")) as vm:

        def broken(offset: int, size: int) -> bytes:
            raise RuntimeError("out of order")

        ged = next(r.device for r in vm.machine.bus.ranges() if r.name == "ged")
        ged.read = broken  # type: ignore[method-assign]
        # the guest reads 0xff, in which the button's bit is set: it takes that for a press, and halts
        await vm.start()
        await event(vm, EventKind.DEVICE_ERROR)
        assert vm.state is VMState.RUNNING
        told = [e async for e in _so_far(vm) if e.kind is EventKind.DEVICE_ERROR]
        assert [(e.device, e.detail) for e in told] == [("ged", "RuntimeError: out of order")]


async def test_a_guest_that_provokes_errors_without_end_is_told_of_so_many_times() -> None:
    async with VM(config("x")) as vm:

        def broken(offset: int, size: int) -> bytes:
            raise RuntimeError("again")

        timer = next(r for r in vm.machine.bus.ranges() if r.name == "pm timer")
        timer.device.read = broken  # type: ignore[method-assign]
        await vm.start()
        await counts_on(vm, 10 * BURST)
        await vm.kill()
        events = [e async for e in vm.events(from_start=True)]
    errors = [e for e in events if e.kind is EventKind.DEVICE_ERROR]
    assert len(errors) == BURST
    assert "of further errors of this device one is told in 60 s" in errors[-1].detail
    assert events[0].kind is EventKind.STARTED


async def _so_far(vm: VM) -> AsyncIterator[Event]:
    events = vm.events(from_start=True)
    while events._queue:
        yield await anext(events)


async def test_a_guest_whose_exits_are_lost_has_ended_and_says_why() -> None:
    """One that is not answered would stand still for ever."""
    async with VM(config("x")) as vm, VM(config("x")) as other:
        await vm.start()
        await other.start()
        vm.machine.exits._fail(MemoryError())
        status = await asyncio.wait_for(vm.wait(), HANGS)
        assert status.reason is ExitReason.ERROR
        assert "exits of its were lost" in status.detail
        assert isinstance(status.error, HostError)
        assert status.error.errno == errno.ENOMEM
        await other.pause()
        await other.resume()
