"""How many descriptors a guest has: what bounds the guests of a process."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import struct
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from aiovmm import VM, RngConfig, VMState
from tests.limits import HANGS
from tests.vm.drivers import five_devices, start_drivers
from tests.vm.guest import config

pytestmark = pytest.mark.kvm
HAS_TUN = os.path.exists("/dev/net/tun") and os.geteuid() == 0


def open_files() -> Counter[str]:
    """By what they are. What earlier tests have dropped in circles is gone before, so that it does not go between two looks."""
    gc.collect()
    names: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the list
            continue
        names[target.removeprefix("anon_inode:").split(":[")[0]] += 1
    return names


async def test_a_guest_without_devices_has_three_and_one_more_a_processor() -> None:
    others = open_files()["/dev/kvm"]  # which fixtures have opened for themselves
    async with VM(config("hi")) as first:
        await first.start()
        before = open_files()
        async with VM(config("hi")) as vm:
            await vm.start()
            assert open_files() - before == Counter({"kvm-vm": 1, "kvm-vcpu:0": 1, "[eventfd]": 1})
        async with VM(config("hi", 3)) as vm:
            await vm.start()
            assert (open_files() - before).total() == 5
        assert not open_files() - before
    assert open_files()["/dev/kvm"] <= others, "the guests' own is closed with the last of them"


@pytest.mark.skipif(not HAS_TUN, reason="a network card needs /dev/net/tun, and root")
async def test_a_guest_with_five_devices_at_work_has_at_most_twelve(tmp_path: Path) -> None:
    async with VM(config("hi", rng=RngConfig())) as first:
        await first.start()
        before = open_files()
        async with VM(five_devices(tmp_path)) as vm:
            await vm.start()
            await vm.serial.expect(rb"hello\n", timeout=HANGS)
            assert (open_files() - before).total() <= 7, "no driver has come"
            drivers = await start_drivers(vm)
            assert len(drivers) == 5
            there = open_files() - before
            assert there["[eventfd]"] == 6, "one for its exits, one a device"
            assert there.total() <= 12, there
            await drivers["rng"].request(0, writable=[32])
            assert (open_files() - before).total() == there.total()
        assert not open_files() - before


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.skipif(not HAS_TUN, reason="a network card needs /dev/net/tun, and root")
async def test_a_thousand_guests_with_five_devices_answer_in_one_process(tmp_path: Path) -> None:
    """On their serial ports and on a queue of each device that has one to ask, all of them alive, within `ulimit -n 20000`."""
    count = 1000
    earlier = open_files()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert limit >= 13 * count, "raise `ulimit -n`"
    async with AsyncExitStack() as stack:
        guests = []
        for number in range(count):
            vm = await stack.enter_async_context(VM(five_devices(tmp_path, f"guest{number}")))
            await vm.start()
            await vm.serial.expect(rb"hello\n", timeout=60)
            guests.append((vm, await start_drivers(vm)))
        assert open_files().total() <= 12 * count + 100
        for vm, drivers in guests:
            assert vm.state is VMState.RUNNING
            assert any(await drivers["rng"].request(0, writable=[32]))
            header = struct.pack("<IIQ", 0, 0, 3)
            assert await drivers["disk0"].request(0, [header], [512, 1]) == bytes(513)
        await asyncio.gather(*(vm.kill() for vm, _ in guests))
    assert not any("kvm" in name for name in open_files() - earlier)
