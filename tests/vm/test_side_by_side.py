"""What the host is asked for while a machine is made: its devices are opened side by side, and so is its memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from aiovmm import VM, HostError
from aiovmm.machine.assembly import Machine
from aiovmm.runtime import crew
from aiovmm.runtime.tasks import side_by_side
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.queue import Queue
from tests.vm.guest import config

LIMIT = 30.0  # seconds: that is none of them


class Slow(VirtioDevice):
    """Opens when `others` are at it, too; `error` is what becomes of it then."""

    device_id, name, queue_sizes = 42, "slow", (16,)
    _opens_slowly = True

    def __init__(self, others: asyncio.Barrier, error: Exception | None = None) -> None:
        self.others, self.error = others, error
        self.opened = self.closed = False

    async def open(self) -> None:
        async with asyncio.timeout(LIMIT):
            await self.others.wait()
        if self.error is not None:
            raise self.error
        self.opened = True

    async def close(self) -> None:
        self.closed = True

    async def run(self, queues: list[Queue], features: int) -> None:
        await asyncio.Event().wait()


async def test_devices_that_wait_to_be_open_wait_together() -> None:
    others = asyncio.Barrier(2)
    devices = Slow(others), Slow(others)
    async with VM(config("s"), devices=devices):
        assert all(device.opened for device in devices)


async def test_memory_is_made_while_devices_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    making, others = threading.Event(), asyncio.Barrier(1)
    make = Machine._make_vm

    class Last(Slow):
        async def open(self) -> None:
            assert await asyncio.to_thread(making.wait, LIMIT), "nobody makes memory before it is open"
            await super().open()

    def told(machine: Machine) -> None:
        making.set()
        make(machine)

    monkeypatch.setattr(Machine, "_make_vm", told)
    device = Last(others)
    async with VM(config("s"), devices=[device]):
        assert device.opened


async def test_a_device_that_cannot_be_opened_leaves_nothing_of_the_others() -> None:
    others = asyncio.Barrier(2)
    devices = Slow(others), Slow(others, HostError("opening it", 5))
    vm = VM(config("s"), devices=devices)
    with pytest.raises(HostError, match="opening it"):
        async with vm:
            pass
    assert all(device.closed for device in devices)


async def test_memory_that_cannot_be_had_is_told_though_a_device_waits_for_somebody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a network card does whose back end is to come."""

    class Waits(Slow):
        async def open(self) -> None:
            await asyncio.Event().wait()

    def make(machine: Machine) -> None:
        raise HostError("making memory", 12)

    monkeypatch.setattr(Machine, "_make_vm", make)
    device = Waits(asyncio.Barrier(1))
    async with asyncio.timeout(LIMIT):
        with pytest.raises(HostError, match="making memory"):
            async with VM(config("s"), devices=[device]):
                pass
    assert device.closed


async def work(done: list[str], name: str, turns: int, error: Exception | None = None) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    done.append(name)
    if error is not None:
        raise error


async def test_all_go_to_their_ends() -> None:
    done: list[str] = []
    await side_by_side(work(done, "a", 3), work(done, "b", 1), work(done, "c", 9), work(done, "d", 0))
    assert done == ["d", "b", "a", "c"]


async def test_what_fails_ends_the_others_which_are_waited_for() -> None:
    done: list[str] = []

    async def has_an_end_of_its_own() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await work(done, "end", 5, KeyError("told, for it comes first"))

    async def waits() -> None:
        await asyncio.Event().wait()

    with pytest.raises(KeyError, match="comes first"):
        await side_by_side(waits(), has_an_end_of_its_own(), work(done, "b", 1, ValueError("came before")))
    assert done == ["b", "end"]


async def test_who_is_cancelled_waits_for_all_of_them() -> None:
    ended: list[int] = []
    begun = asyncio.Barrier(3)

    async def work(number: int) -> None:
        try:
            await begun.wait()
            await asyncio.Event().wait()
        finally:
            for _ in range(number * 3):
                await asyncio.sleep(0)
            ended.append(number)

    task = asyncio.ensure_future(side_by_side(work(2), work(1)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [1, 2]


async def test_a_guest_like_another_is_made_by_one_thread_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change of threads waits for a processor, on a busy machine for longer than all the rest takes."""
    asked: list[str] = []
    run = crew.run

    def asking(name: str, work: Callable[[], Callable[[], None]]) -> None:
        asked.append(name)
        run(name, work)

    monkeypatch.setattr(crew, "run", asking)
    counts = []
    for _ in range(2):
        async with VM(config("hi")) as vm:
            counts.append(len(asked))
            await vm.start()
            await vm.serial.expect(rb"hello\n", timeout=60)
        asked.clear()
    assert counts[1] == 1
