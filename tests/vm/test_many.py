"""Several processors in one VM, many VMs in one process, and what they notice of each other."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from contextlib import AsyncExitStack
from typing import Any

import pytest

from aiovmm import VM, EventKind, ExitReason, RebootPolicy, VMState
from aiovmm.kvm import Kvm
from aiovmm.machine import Machine
from aiovmm.runtime import admission
from aiovmm.runtime.admission import ENDING
from tests.limits import HANGS
from tests.vm.guest import config, counter, counts_on, event, until
from tests.vm.remains import Remains

TURNS = 1000


async def test_four_processors() -> None:
    async with VM(config("a4o", 4)) as vm:
        await vm.start()
        assert (await asyncio.wait_for(vm.wait(), HANGS)).reason is ExitReason.SHUTDOWN
        assert sorted(vm.serial.history) == sorted(b"abcE")
        assert vm.serial.history.endswith(b"E"), "which is printed when the others are there"


async def test_the_order_in_which_two_processors_print_is_the_guests() -> None:
    """They take turns under a lock of the guest's. Each byte is posted, so nobody waits for the loop between two turns."""
    async with VM(config("Ao", 2)) as vm:
        await vm.start()
        assert (await asyncio.wait_for(vm.wait(), HANGS)).reason is ExitReason.SHUTDOWN
        assert vm.serial.history == bytes(i & 0xFF for i in range(TURNS + 1))


@pytest.mark.timeout(120)
async def test_two_hundred_vms_at_once() -> None:
    remains = Remains.now()
    async with AsyncExitStack() as stack:
        vms = [await stack.enter_async_context(VM(config("hi", name=f"vm{i}"))) for i in range(200)]
        asking = await stack.enter_async_context(VM(config("x", name="asking")))
        await asyncio.gather(*(vm.start() for vm in [*vms, asking]))
        await asyncio.gather(*(vm.serial.expect(rb"hello\n", timeout=60) for vm in vms))
        await counts_on(asking, 1000)
        await asyncio.gather(*(vm.kill() for vm in vms[::2]))
        assert {vm.state for vm in vms[1::2]} == {VMState.RUNNING}
        await asyncio.gather(*(vm.pause() for vm in vms[1::2]))
        await counts_on(asking, 1000)
    await remains.check()


@pytest.mark.parametrize("does", ["w", "x", "n", "s"])
async def test_guests_that_flood_leave_a_neighbour_its_turns(does: str) -> None:
    async with AsyncExitStack() as stack:
        floods = [await stack.enter_async_context(VM(config(does, 2, name=f"flood{i}"))) for i in range(8)]
        neighbour = await stack.enter_async_context(VM(config("xo", name="neighbour")))
        await asyncio.gather(*(vm.start() for vm in [*floods, neighbour]))
        await asyncio.gather(*(counts_on(vm) for vm in floods))
        await counts_on(neighbour, 500)
        loop_turns = counter(neighbour)
        await asyncio.sleep(0)
        await until(lambda: counter(neighbour) > loop_turns + 500)
        await asyncio.wait_for(asyncio.gather(*(vm.pause() for vm in floods)), HANGS)
        await asyncio.wait_for(asyncio.gather(*(vm.resume() for vm in floods)), HANGS)


async def test_one_vms_failure_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    async with VM(config("x")) as good, VM(config("u")) as bad:
        await asyncio.gather(good.start(), bad.start())
        assert (await asyncio.wait_for(bad.wait(), HANGS)).reason is ExitReason.ERROR
        await counts_on(good, 100)
        assert [e.kind async for e in bad.events(from_start=True)] == [EventKind.STARTED, EventKind.STOPPED]
        await event(good, EventKind.STARTED)


@pytest.mark.parametrize("guests", [1, 20])
async def test_a_neighbour_that_takes_all_descriptors_it_can_have_ends_no_reboot(guests: int) -> None:
    """Nor many at once, whose machines leave more free for a moment than it could have had before."""
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.vm.hunger", str(guests)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    told, errors = await asyncio.wait_for(program.communicate(), 100)
    print(errors.decode())
    assert told.decode() == f"rebooted {5 * guests} refused True\n"
    assert program.returncode == 0


async def test_kvm_is_opened_once_however_often_a_guest_resets_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, really = list[Kvm](), Kvm.open

    def noted(**options: Any) -> Kvm:
        opened.append(really(**options))
        return opened[-1]

    monkeypatch.setattr(Kvm, "open", noted)
    async with VM(config("r", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await event(vm, EventKind.REBOOTED, 3)
        assert len(opened) == 1
        assert opened[0].fd >= 0
    assert opened[0].fd < 0


async def test_of_many_that_are_closed_at_once_a_few_are_taken_apart_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each step of all of them would be one turn of the loop, and each would have a thread."""
    inside, most, before = 0, 0, threading.active_count()
    really = Machine.aclose

    async def aclose(self: Machine) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await really(self)
        inside -= 1

    monkeypatch.setattr(Machine, "aclose", aclose)
    monkeypatch.setattr(admission, "PATIENCE", 60)  # which a busy machine would try
    vms = [VM(config("hi", name=f"vm{i}")) for i in range(60)]
    await asyncio.gather(*(vm.__aenter__() for vm in vms))
    await asyncio.gather(*(vm.start() for vm in vms))
    await asyncio.gather(*(vm.aclose() for vm in vms))
    assert 1 < most <= ENDING
    assert inside == 0
    assert threading.active_count() - before < 30
