"""Start, pause, resume, shutdown, stop, kill, reset: idempotent, awaitable, by several tasks and in each other's way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from aiovmm import VM, EventKind, ExitReason, RebootPolicy, StateError, UsageError, VMState
from aiovmm.kvm.x86_64.vcpustate import VcpuState
from aiovmm.machine import assembly
from tests.limits import HANGS
from tests.vm.guest import config, counter, counts_on, event, until


async def kinds(vm: VM) -> list[EventKind]:
    """All events of a VM that has ended."""
    return [e.kind async for e in vm.events(from_start=True)]


async def test_each_transition_twice() -> None:
    async with VM(config("s")) as vm:
        assert vm.state is VMState.CREATED
        await vm.start()
        await vm.start()
        await counts_on(vm)
        await vm.pause()
        await vm.pause()
        await vm.resume()
        await vm.resume()
        await counts_on(vm)
        status = await vm.kill("first")
        assert await vm.kill("second") is status
        assert await vm.stop() is status
        assert (status.reason, status.detail) == (ExitReason.KILLED, "first")
        assert vm.status is status
    await vm.aclose()
    assert await vm.wait() is status
    assert await kinds(vm) == [EventKind.STARTED, EventKind.PAUSED, EventKind.RESUMED, EventKind.STOPPED]


async def test_what_does_not_fit_the_state_is_refused_by_name() -> None:
    vm = VM(config("s"))
    with pytest.raises(StateError, match="not there"):
        await vm.start()
    async with vm:
        with pytest.raises(StateError, match="start"):
            await vm.resume()
        with pytest.raises(StateError, match="has not been started"):
            await vm.pause()
        with pytest.raises(StateError, match="power button"):
            vm.shutdown()
        await vm.start()
        await vm.pause()
        with pytest.raises(StateError, match="resume"):
            await vm.start()
        with pytest.raises(StateError, match="power button"):
            vm.shutdown()
        await vm.kill()
        for call in (vm.start, vm.pause, vm.resume):
            with pytest.raises(StateError, match="killed"):
                await call()
    with pytest.raises(StateError, match="entered before"):
        await vm.__aenter__()


async def test_a_paused_guest_stands_still() -> None:
    async with VM(config("s", cpus=2)) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.pause()
        seen = counter(vm)
        async with VM(config("s")) as other:
            await other.start()
            await counts_on(other, 10_000)
        assert counter(vm) == seen
        await vm.resume()
        await counts_on(vm)


async def test_the_power_button() -> None:
    async with VM(config("bo")) as vm:
        await vm.start()
        await counts_on(vm)
        status = await vm.stop(timeout=HANGS)
    assert status.reason is ExitReason.SHUTDOWN
    assert await kinds(vm) == [EventKind.STARTED, EventKind.POWER_BUTTON, EventKind.STOPPED]


async def test_stop_of_a_guest_that_does_not_heed_the_button() -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        status = await vm.stop(timeout=0.01)
    assert status.reason is ExitReason.KILLED
    assert "0.01 s" in status.detail


@pytest.mark.parametrize("state", ["created", "paused"])
async def test_stop_of_a_guest_that_cannot_heed_it_does_not_wait(state: str) -> None:
    async with VM(config("s")) as vm:
        if state == "paused":
            await vm.start()
            await vm.pause()
        status = await asyncio.wait_for(vm.stop(timeout=1000), HANGS)
    assert status.reason is ExitReason.KILLED
    assert state in status.detail


async def test_cancelling_wait_does_not_stop_the_guest() -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(vm.wait(), 0.001)
        await counts_on(vm)
        assert vm.state is VMState.RUNNING


async def test_a_vm_that_is_stopped_says_why_from_the_first_moment() -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        killing = asyncio.ensure_future(vm.kill())
        while vm.state is not VMState.STOPPED:  # noqa: ASYNC110 - it takes a few turns of the loop, no more
            await asyncio.sleep(0)
        assert not killing.done()  # its vCPU has yet to end
        with pytest.raises(StateError, match="killed"):
            await vm.resume()
        assert vm.status is not None
        assert await killing is vm.status


async def test_many_tasks_at_once() -> None:
    async def tease(vm: VM, task: int) -> None:
        for i in range(20):
            try:
                await (vm.pause if (task + i) % 2 else vm.resume)()
            except StateError:
                assert vm.status is not None

    async with VM(config("x", cpus=2)) as vm:
        await asyncio.gather(*(vm.start() for _ in range(5)))
        await asyncio.gather(*(tease(vm, i) for i in range(8)))
        await vm.resume()
        await counts_on(vm)
        teasing = [asyncio.ensure_future(tease(vm, i)) for i in range(8)]
        await asyncio.sleep(0)
        statuses = await asyncio.gather(*(vm.kill(str(i)) for i in range(5)), vm.stop(1), vm.wait())
        assert len(set(map(id, statuses))) == 1
        await asyncio.gather(*teasing)
        await asyncio.gather(*(vm.aclose() for _ in range(5)))
    events = await kinds(vm)
    assert events[0] is EventKind.STARTED
    assert events[-1] is EventKind.STOPPED
    assert events.count(EventKind.STARTED) == events.count(EventKind.STOPPED) == 1
    middle = [k for k in events[1:-1] if k is not EventKind.POWER_BUTTON]
    assert all(k is (EventKind.RESUMED if i % 2 else EventKind.PAUSED) for i, k in enumerate(middle))


async def test_a_pause_that_waits_for_a_device_can_be_cancelled_or_cut_short_by_a_kill() -> None:
    never, asked = asyncio.Event(), asyncio.Event()

    async def answer() -> None:
        asked.set()
        await never.wait()

    for end in ("cancel", "kill"):
        async with VM(config("eos")) as vm:
            control = next(r.device for r in vm.machine.bus.ranges() if r.name == "acpi control")
            control.write = lambda offset, data: answer()  # type: ignore[method-assign]
            await vm.start()
            vm.serial.write(b"q")
            await asyncio.wait_for(asked.wait(), HANGS)
            pausing = asyncio.ensure_future(vm.pause())
            done, _ = await asyncio.wait([pausing], timeout=0.05)
            assert not done
            if end == "cancel":
                pausing.cancel()
                await asyncio.wait([pausing])
                assert vm.state is VMState.RUNNING
                never.set()
                await counts_on(vm)
                await vm.pause()
            else:
                await asyncio.wait_for(vm.kill(), HANGS)
                with pytest.raises(StateError):
                    await pausing
        never.clear()
        asked.clear()


Act = Callable[[VM], Awaitable[object]]


@pytest.mark.parametrize("act", [VM.kill, VM.aclose, lambda vm: vm.stop(0.001)], ids=["kill", "aclose", "stop"])
@pytest.mark.parametrize("build", range(6))
async def test_an_end_during_a_reset(act: Act, build: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the old machine is torn down, while the guest is held back, or while the new machine is built."""
    building = asyncio.Event()
    go_on = asyncio.Event()
    make = assembly.Machine._build

    async def slow(self: assembly.Machine, opening: assembly.Opening | None) -> None:
        building.set()
        if build == 5:
            await go_on.wait()
        await make(self, opening)

    async with VM(config("er", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        monkeypatch.setattr(assembly.Machine, "_build", slow)
        vm.serial.write(b"q")
        machine = vm.machine
        await until(lambda: vm._power.machine is not machine)
        for _ in range(3 * build):
            await asyncio.sleep(0)
        if build == 5:
            await building.wait()
        ending = asyncio.ensure_future(act(vm))
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.wait_for(ending, HANGS)
        status = await vm.wait()
        assert status.reason is ExitReason.KILLED
    assert (await kinds(vm))[-1] is EventKind.STOPPED


async def test_a_guest_that_was_paused_in_a_reset_stands_at_its_first_instruction() -> None:
    async with VM(config("ehr", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await vm.pause()
        vm._ending.guest_ended(ExitReason.REBOOT, "as by a reset that came with the pause")
        await event(vm, EventKind.REBOOTED)
        assert vm.state is VMState.PAUSED
        await vm.pause()
        before = VcpuState(vm.machine.vcpus[0]).get_regs().rip
        vm.serial.write(b"q")
        async with VM(config("s")) as other:
            await other.start()
            await counts_on(other, 10_000)
        assert VcpuState(vm.machine.vcpus[0]).get_regs().rip == before
        await vm.resume()
        await vm.serial.expect(rb"hello", timeout=HANGS)


async def test_the_button_pressed_in_a_reset_is_pressed_for_the_next_life() -> None:
    async with VM(config("ebo", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        vm._ending.guest_ended(ExitReason.REBOOT, "as by a reset")
        await until(lambda: vm._power.machine is None)
        vm.shutdown()
        await event(vm, EventKind.REBOOTED)
        vm.serial.write(b"q")
        status = await asyncio.wait_for(vm.wait(), HANGS)
        assert status.reason is ExitReason.SHUTDOWN


async def test_a_guest_that_only_resets_itself_leaves_the_loop_to_others() -> None:
    async with VM(config("r", on_reboot=RebootPolicy.RESTART)) as vm, VM(config("x")) as other:
        await asyncio.gather(vm.start(), other.start())
        loop = asyncio.get_running_loop()
        await event(vm, EventKind.REBOOTED)
        began = loop.time()
        await event(vm, EventKind.REBOOTED, 11, timeout=100)
        assert loop.time() - began > 0.4, "ten resets at 20 a second at most"
        await counts_on(other, 1000)


async def test_killed_while_it_is_being_built() -> None:
    vm = VM(config("s"))
    entering = asyncio.ensure_future(vm.__aenter__())
    await asyncio.sleep(0)
    status = await vm.kill("too early")
    await entering
    with pytest.raises(StateError, match="too early"):
        await vm.start()
    await vm.aclose()
    assert vm.status is status
    assert await kinds(vm) == [EventKind.STOPPED]


async def test_killed_by_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a coroutine that a guest's write has begun, and that the guest waits for."""
    async with VM(config("eo")) as vm:

        async def kill() -> None:
            await vm.kill("by its device")

        control = next(r.device for r in vm.machine.bus.ranges() if r.name == "acpi control")
        monkeypatch.setattr(control, "write", lambda offset, data: kill())
        await vm.start()
        vm.serial.write(b"q")
        assert (await asyncio.wait_for(vm.wait(), HANGS)).detail == "by its device"


@pytest.mark.parametrize("timeout", [float("nan"), "5"])
async def test_stop_with_a_time_out_that_is_none_presses_no_button(timeout: float) -> None:
    async with VM(config("s")) as vm:
        await vm.start()
        with pytest.raises(UsageError, match="is not a number of seconds"):
            await asyncio.wait_for(vm.stop(timeout), HANGS)
        await counts_on(vm)
        assert EventKind.POWER_BUTTON not in [event.kind for event in vm._journal._stream.history]
