"""What a guest's driver does with the watchdog, and what becomes of a guest that stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm import VM, ConfigError, EventKind, ExitReason, VMState, WatchdogAction, WatchdogConfig
from aiovmm.config.options import parse_watchdog
from aiovmm.devices.virtio.watchdog import INTERVAL, TIMEOUT, WatchdogDevice
from aiovmm.errors import ChainError, SnapshotError
from aiovmm.testing import Harness
from tests.limits import HANGS
from tests.vm.guest import config, event, until

TICK = 0.005
WHOLE = 8 * TICK


def device(silent: Callable[[], None], runs: Callable[[], bool] = lambda: True) -> WatchdogDevice:
    return WatchdogDevice(silent, runs, tick=TICK)


async def ping(h: Harness) -> None:
    assert await h.request(0, [], [1]) == b"\x01"


def test_it_waits_longer_than_the_driver_does() -> None:
    assert (INTERVAL, TIMEOUT) == (15, 20)
    assert WatchdogDevice.device_id == 35


async def test_a_guest_that_stops_is_told_of_once() -> None:
    told: list[None] = []
    async with Harness(device(lambda: told.append(None))) as h:
        await asyncio.sleep(2 * WHOLE)
        assert told == [], "it has not begun"
        await ping(h)
        await until(lambda: bool(told))
        await asyncio.sleep(2 * WHOLE)
        assert len(told) == 1
        await ping(h)
        await until(lambda: len(told) == 2)


async def test_pings_keep_it_quiet() -> None:
    told: list[None] = []
    async with Harness(WatchdogDevice(lambda: told.append(None), lambda: True, tick=1.0)) as h:
        for _ in range(50):
            await ping(h)
        assert h.device.save() == {"left": 8}
    assert told == []


async def test_a_pause_does_not_count() -> None:
    told: list[None] = []
    runs = False
    async with Harness(device(lambda: told.append(None), lambda: runs)) as h:
        await ping(h)
        await asyncio.sleep(3 * WHOLE)
        assert told == []
        runs = True
        await until(lambda: bool(told))


async def test_nor_does_a_standstill_for_a_snapshot() -> None:
    told: list[None] = []
    async with Harness(device(lambda: told.append(None))) as h:
        await ping(h)
        h.device.suspending = True
        await asyncio.sleep(3 * WHOLE)
        assert h.device.save()["left"] > 1  # type: ignore[index]
        h.device.suspending = False
        await until(lambda: bool(told))


async def test_a_driver_that_lets_go_in_good_order_is_no_guest_that_hangs() -> None:
    told: list[None] = []
    async with Harness(device(lambda: told.append(None))) as h:
        await ping(h)
        await h.reset()
        await asyncio.sleep(2 * WHOLE)
    assert told == []


async def test_what_was_left_is_left_after_it_was_saved() -> None:
    told: list[None] = []
    first = device(lambda: None)
    async with Harness(first) as h:
        await ping(h)
        state = first.save()
    second = device(lambda: told.append(None))
    second.load(state)
    async with Harness(second):
        await until(lambda: bool(told))
    for bad in ({}, {"left": 9}, {"left": -1}, {"left": 1, "x": 1}):
        with pytest.raises(SnapshotError, match="watchdog"):
            second.load(bad)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=2), st.lists(st.integers(0, 9), max_size=2)), max_size=6)
)
async def test_any_chain_is_a_ping_or_breaks_the_device(chains: list[tuple[list[int], list[int]]]) -> None:
    """Never more than that."""
    async with Harness(device(lambda: None)) as h:
        for readable, writable in chains:
            if not readable and not writable:
                continue
            good = not sum(readable) and sum(writable) > 0
            if good:
                assert (await h.request(0, [], writable))[:1] == b"\x01"
                continue
            h.queues[0].add([bytes(n) for n in readable], writable)
            h.queues[0].kick()
            with contextlib.suppress(IndexError):
                assert isinstance(await h.broken(), ChainError)
            return


async def fired(action: WatchdogAction) -> VM:
    vm = VM(replace(config("hs"), watchdog=WatchdogConfig(action=action)))
    async with vm:
        await vm.start()
        dog = vm.device("watchdog", WatchdogDevice)
        await vm.pause()
        assert not dog._runs()
        await vm.resume()
        assert dog._runs()
        dog._silent()
        await event(vm, EventKind.WATCHDOG)
        if action is WatchdogAction.RESET:
            await asyncio.wait_for(vm.wait(), HANGS)
        else:
            assert vm.state is VMState.RUNNING
    return vm


async def test_it_resets_the_guest() -> None:
    status = (await fired(WatchdogAction.RESET)).status
    assert status is not None
    assert (status.reason, status.detail) == (ExitReason.REBOOT, "reset by the watchdog")


async def test_or_tells_and_no_more() -> None:
    status = (await fired(WatchdogAction.EVENT)).status
    assert status is not None
    assert status.reason is ExitReason.KILLED


def test_its_option() -> None:
    assert parse_watchdog("") == WatchdogConfig()
    assert not parse_watchdog("action=event,pci_device_id=3").resets
    with pytest.raises(ConfigError, match=r"watchdog\.action: is reset, event, and not 'x'"):
        parse_watchdog("action=x")
