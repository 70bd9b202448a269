"""An ended VM is gone at once: none of it is in a circle, which only the garbage collector would find, some time, and with all
that is alive to be looked through for it."""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import aiovmm.machine.watched  # noqa: F401 - the first guest that lives for a while does
from aiovmm import VM, DiskConfig, EventKind, RebootPolicy, RngConfig, VMConfig
from aiovmm.machine import release
from aiovmm.testing.vhost_user_backend import VhostUserServer
from tests.limits import HANGS
from tests.vhost_user.disks import RamDisk
from tests.vm.drivers import five_devices, start_drivers
from tests.vm.guest import config, counts_on, event

HAS_TUN = os.path.exists("/dev/net/tun") and os.geteuid() == 0
NEEDS_TUN = pytest.mark.skipif(not HAS_TUN, reason="a network card needs /dev/net/tun, and root")
LIVES = 10


@contextmanager
def uncollected() -> Iterator[Counter[str]]:
    """What the collector finds in the end of what was made meanwhile, by types: it has been off."""
    found: Counter[str] = Counter()
    gc.collect()  # of what earlier tests have dropped
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def prints(of: VMConfig) -> None:
    async with VM(of) as vm:
        await vm.start()
        await vm.serial.expect(rb"hello\n", timeout=HANGS)


async def prints_to_its_end(of: VMConfig) -> None:
    async with VM(replace(of, payload=replace(of.payload, cmdline="ho"))) as vm:
        await vm.start()
        await vm.wait()


async def is_stopped(of: VMConfig) -> None:
    async with VM(of) as vm:
        await vm.start()
        await vm.pause()
        await vm.resume()
        await vm.stop(timeout=0.01)
        assert vm.stats().devices is not None


async def is_watched(of: VMConfig) -> None:
    """It has lived for so long that somebody looks after who blocks the loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "_WATCH", 0.0)
        await prints(of)


async def is_not_started(of: VMConfig) -> None:
    async with VM(of):
        pass


async def resets_itself(of: VMConfig) -> None:
    payload = replace(of.payload, cmdline="r")
    async with VM(replace(of, payload=payload, on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await event(vm, EventKind.REBOOTED)


async def is_driven(of: VMConfig) -> None:
    """Its devices are at work when it ends."""
    async with VM(of) as vm:
        await vm.start()
        drivers = await start_drivers(vm)
        await drivers["rng"].request(0, writable=[64])
        for driver in drivers.values():  # which is not the VM's, and in a circle with its queues
            driver.queues.clear()


@pytest.mark.parametrize("life", [prints, prints_to_its_end, is_stopped, is_watched, is_not_started, resets_itself])
async def test_a_guest_without_devices(life: Callable[[VMConfig], Awaitable[None]]) -> None:
    await life(config("hi"))  # makes what is made once
    with uncollected() as found:
        for _ in range(LIVES):
            await life(config("hi"))
        await asyncio.sleep(0)
    assert found.total() < LIVES, found.most_common()


@NEEDS_TUN
@pytest.mark.parametrize("life", [prints, is_stopped, is_watched, is_not_started, resets_itself, is_driven])
async def test_a_guest_with_five_devices(life: Callable[[VMConfig], Awaitable[None]], tmp_path: Path) -> None:
    await life(five_devices(tmp_path))
    with uncollected() as found:
        for _ in range(LIVES):
            await life(five_devices(tmp_path))
        await asyncio.sleep(0)
    assert found.total() < LIVES, found.most_common()


async def test_a_guest_with_a_disk_that_another_process_serves(tmp_path: Path) -> None:
    path = tmp_path / "vu.sock"
    of = config("hi", disks=(DiskConfig(vhost_user=True, socket=path),))
    async with VhostUserServer(RamDisk(bytearray(1 << 20)), path):
        await prints(of)
        with uncollected() as found:
            for _ in range(LIVES):
                await prints(of)
            await asyncio.sleep(0)
    assert found.total() < LIVES, found.most_common()


async def test_forks() -> None:
    async with VM(config("s", rng=RngConfig())) as vm:
        await vm.start()
        await counts_on(vm)
        template = await vm.freeze()

    async def fork() -> None:
        async with template.fork() as vm:
            await vm.resume()
            await counts_on(vm)

    async with template:
        await fork()
        with uncollected() as found:
            for _ in range(LIVES):
                await fork()
            await asyncio.sleep(0)
    assert found.total() < LIVES, found.most_common()
