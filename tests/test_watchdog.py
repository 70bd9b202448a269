"""Who blocks the event loop is named while it does, whatever kind of code it is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from aiovmm import VirtioDevice
from aiovmm.runtime.watchdog import unwatch, watch
from aiovmm.testing import Harness
from tests.limits import HANGS


class Vm:
    """A VM that has this device."""

    name = "web"

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device
        self.slow: list[tuple[str, str]] = []
        self.told = asyncio.Event()  # by the watchdog's thread, some turns of the loop after it has logged

    def device_at(self, frame: FrameType) -> str | None:
        return None

    def id_of(self, device: object) -> str | None:
        return "custom0" if device is self._device else None

    def device_slow(self, device: str, detail: str) -> None:
        self.slow.append((device, detail))
        self.told.set()

    def loop_closed(self) -> None:
        return


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What is logged, at once."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("aiovmm").addHandler(handler)
    yield told
    logging.getLogger("aiovmm").removeHandler(handler)


def keep_the_loop(told: list[str]) -> None:
    """Until somebody has said so."""
    deadline = time.monotonic() + HANGS
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)


async def nobodys(told: list[str]) -> None:
    """Code that has no object of the device's."""
    keep_the_loop(told)


class Delegating(VirtioDevice):
    """Its work is done by tasks of functions that know nothing of it."""

    device_id, name, queue_sizes = 42, "delegating", (8,)

    def __init__(self, told: list[str]) -> None:
        self.told, self.done = told, asyncio.Event()

    async def run(self, queues: Any, features: int) -> None:
        work = asyncio.create_task(nobodys(self.told), name="of its own")
        work.add_done_callback(lambda _: self.done.set())
        await asyncio.get_running_loop().create_future()


async def test_a_task_that_a_device_has_started_is_the_devices(told: list[str]) -> None:
    device = Delegating(told)
    vm, loop = Vm(device), asyncio.get_running_loop()
    watch(loop, vm)
    try:
        async with Harness(device):
            await asyncio.wait_for(device.done.wait(), HANGS)
            await asyncio.wait_for(vm.told.wait(), HANGS)
    finally:
        unwatch(loop, vm)
    assert told[0].startswith("web: custom0: keeps the event loop for over 0.5 s")
    assert "in keep_the_loop" in told[0]
    assert [device for device, _ in vm.slow] == ["custom0"]


async def test_a_task_of_the_programs_own_is_named(told: list[str]) -> None:
    vm, loop = Vm(Delegating(told)), asyncio.get_running_loop()
    watch(loop, vm)
    try:
        await asyncio.create_task(nobodys(told), name="my own work")
        await asyncio.sleep(0)
    finally:
        unwatch(loop, vm)
    assert told[0].startswith("task 'my own work': keeps the event loop for over 0.5 s, and with it every guest")
    assert "nobodys" in told[0], "the way there"
    assert vm.slow == []


async def test_a_callback_of_a_device_is_the_devices(told: list[str]) -> None:
    """On asyncio's own loop: uvloop's callbacks leave no frame that tells what they are."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        return

    class Calling(Delegating):
        async def run(self, queues: Any, features: int) -> None:
            loop.call_later(0, self.called)
            await loop.create_future()

        def called(self) -> None:
            keep_the_loop(self.told)
            done.set()

    done, device = asyncio.Event(), Calling(told)
    vm = Vm(device)
    watch(loop, vm)
    try:
        async with Harness(device):
            await asyncio.wait_for(done.wait(), HANGS)
            await asyncio.sleep(0)
    finally:
        unwatch(loop, vm)
    assert told[0].startswith("web: custom0: keeps")
