"""Nobody waits for ever: the end of a guest arrives whatever fails on the way, and from the wrong place one is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from aiovmm import (
    VM,
    DiskConfig,
    Event,
    EventKind,
    ExitReason,
    ExitStatus,
    RebootPolicy,
    StateError,
    VsockConfig,
)
from aiovmm.config.disk import ImageType
from aiovmm.devices.virtio.blk import BlkDevice
from aiovmm.machine.power import Power
from tests.limits import HANGS
from tests.vm.guest import config, counts_on

Work = Coroutine[Any, Any, Any]


async def ended(vm: VM) -> tuple[ExitStatus, Event]:
    """How, as whoever waits hears it, and the last event."""
    status = await asyncio.wait_for(vm.wait(), HANGS)
    events = [event async for event in vm.events(from_start=True)]
    assert events[-1].kind is EventKind.STOPPED
    assert vm.serial.closed
    return status, events[-1]


async def test_a_machine_that_cannot_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def off(self: Power) -> None:
        raise OSError("no such thread")

    async with VM(config("ho")) as vm:
        with monkeypatch.context() as patch:
            patch.setattr(Power, "off", off)
            await vm.start()
            status, event = await ended(vm)
    assert status.reason is ExitReason.ERROR
    assert status.detail == "powered off by ACPI; its machine could not be stopped: no such thread"
    assert status.error is event.error
    assert isinstance(event.error, OSError)
    assert event.status is status


async def test_who_asks_a_guest_for_a_connection_hears_that_it_has_ended() -> None:
    async with VM(config("eo", vsock=VsockConfig(cid=3))) as vm:
        waiting = [asyncio.create_task(vm.vsock.connect(7, timeout=None, wait=wait)) for wait in (False, True)]
        await vm.start()
        await asyncio.wait(waiting, timeout=0.01)
        vm.serial.write(b"q")
        await asyncio.wait_for(vm.wait(), HANGS)
        for attempt in (*waiting, vm.vsock.connect(7, timeout=None)):
            with pytest.raises(StateError, match="powered off by ACPI"):
                await asyncio.wait_for(attempt, HANGS)
    with pytest.raises(StateError, match="powered off by ACPI"):
        await vm.vsock.connect(7)


async def test_a_loop_that_makes_no_task_for_it() -> None:
    loop = asyncio.get_running_loop()

    def refuse(_loop: asyncio.AbstractEventLoop, coro: Any, **_: Any) -> Any:
        if coro.__qualname__ == "Ending._after":
            raise RuntimeError("no more tasks")
        return asyncio.Task(coro, loop=loop)

    async with VM(config("ho")) as vm:
        loop.set_task_factory(refuse)
        try:
            await vm.start()
            status, event = await ended(vm)
        finally:
            loop.set_task_factory(None)
    assert status.reason is ExitReason.ERROR
    assert status.detail == "its end could not be handled: no more tasks"
    assert isinstance(event.error, RuntimeError)


async def test_a_program_that_cancels_every_task() -> None:
    for turns in range(6):
        async with VM(config("er", on_reboot=RebootPolicy.RESTART)) as vm:
            await vm.start()
            await vm.serial.send(b"q")
            while vm._ending._task is None:  # noqa: ASYNC110 - the guest brings it about
                await asyncio.sleep(0)
            task = vm._ending._task
            for _ in range(turns):
                await asyncio.sleep(0)
            if not task.cancel():
                continue
            status, event = await ended(vm)
            assert status.reason is ExitReason.ERROR
            assert "cancelled" in status.detail
            assert isinstance(event.error, asyncio.CancelledError)


async def test_a_console_that_fails_in_its_end_keeps_nobody_from_hearing(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    seen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: seen.append(context))

    async with VM(config("ho")) as vm:
        monkeypatch.setattr(vm.serial._input, "end", lambda: 1 / 0)
        await vm.start()
        status, _event = await ended(vm)
        assert status.reason is ExitReason.SHUTDOWN
    loop.set_exception_handler(None)


async def test_waiting_for_a_vm_that_was_never_entered() -> None:
    vm = VM(config("s"))
    with pytest.raises(StateError, match="never entered"):
        await asyncio.wait_for(vm.wait(), HANGS)
    assert (await vm.kill("unused")).detail == "unused"
    assert (await vm.wait()).reason is ExitReason.KILLED


ELSEWHERE: dict[str, Callable[[VM], Work]] = {
    "start": VM.start,
    "pause": VM.pause,
    "resume": VM.resume,
    "stop": VM.stop,
    "kill": VM.kill,
    "wait": VM.wait,
    "aclose": VM.aclose,
    "enter": VM.__aenter__,
    "read": lambda vm: vm.serial.read(),
    "expect": lambda vm: vm.serial.expect(rb"never"),
    "send": lambda vm: vm.serial.send(b"x"),
    "drain": lambda vm: vm.serial.drain(),
    "wait_closed": lambda vm: vm.serial.wait_closed(),
    "events": lambda vm: anext(vm._journal.subscribe(from_start=False)),
}


@pytest.fixture
async def running() -> Any:
    async with VM(config("s")) as vm:
        await vm.start()
        yield vm
        if vm.status is None:  # nothing that was refused has done it any harm
            await counts_on(vm)


def in_thread(work: Callable[[], object]) -> BaseException | None:
    """What `work` raises in a thread of its own, which it ends within seconds."""
    raised: list[BaseException | None] = []

    def call() -> None:
        try:
            work()
            raised.append(None)
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(HANGS)
    assert not thread.is_alive(), "it waits for ever"
    return raised[0]


@pytest.mark.parametrize("name", ELSEWHERE)
async def test_another_loop_is_refused_by_name(running: VM, name: str) -> None:
    error = await asyncio.to_thread(in_thread, lambda: asyncio.run(ELSEWHERE[name](running)))
    assert isinstance(error, StateError), error
    assert "another event loop" in str(error)
    assert "run_coroutine_threadsafe" in str(error)


@pytest.mark.parametrize(
    "call",
    [
        VM.shutdown,
        VM.events,
        lambda vm: vm.vsock,
        lambda vm: vm.device("x"),
        lambda vm: vm.serial.write(b"x"),
    ],
    ids=["shutdown", "events", "vsock", "device", "write"],
)
async def test_another_thread_is_refused(running: VM, call: Callable[[VM], object]) -> None:
    error = await asyncio.to_thread(in_thread, lambda: call(running))
    assert isinstance(error, StateError), error
    assert "another thread" in str(error)


DEVICES: dict[str, Callable[[VM], Work]] = {
    "resize": lambda vm: vm.device("disk0", BlkDevice).resize(1 << 21),
    "refresh": lambda vm: vm.device("disk0", BlkDevice).refresh(),
    "connect": lambda vm: vm.vsock.connect(1),
    "listen": lambda vm: vm.vsock.listen(1),
}


@pytest.mark.parametrize("name", DEVICES)
async def test_what_devices_offer_is_refused_on_another_loop(name: str, tmp_path: Path) -> None:
    """In the same thread too: an event loop that runs after the VM's own was left standing."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))

    def on_two_loops() -> BaseException | None:
        loop, other = asyncio.new_event_loop(), asyncio.new_event_loop()
        vm = VM(config("s", disks=(DiskConfig(path=image, image_type=ImageType.RAW),), vsock=VsockConfig()))
        loop.run_until_complete(vm.__aenter__())
        try:
            other.run_until_complete(asyncio.wait_for(DEVICES[name](vm), HANGS))
        except Exception as exc:
            return exc
        finally:
            other.close()
            loop.run_until_complete(vm.aclose())
            loop.close()
        return None

    error = await asyncio.to_thread(on_two_loops)
    assert isinstance(error, StateError), error
    assert "another event loop" in str(error)


async def test_what_the_error_says_works(running: VM) -> None:
    loop = asyncio.get_running_loop()

    def kill() -> ExitStatus:
        return asyncio.run_coroutine_threadsafe(running.kill("from a thread"), loop).result(HANGS)

    assert (await asyncio.to_thread(kill)).detail == "from a thread"


def test_a_loop_that_is_over() -> None:
    async def enter() -> VM:
        vm = VM(config("s"))
        async with vm:
            pass
        return vm

    async def again(use: Callable[[VM], Awaitable[object]]) -> None:
        await use(vm)

    vm = asyncio.run(enter())
    assert asyncio.run(ELSEWHERE["wait"](vm)).reason is ExitReason.KILLED
    with pytest.raises(StateError, match="that one is closed: make a new VM"):
        asyncio.run(again(lambda vm: vm.start()))
