"""What neighbours that flood leave a guest, and what a flood costs its own guest: nothing is lost."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from aiovmm import VM, RngConfig
from aiovmm.kvm import exitloop
from aiovmm.pci.capabilities import VirtioCapType
from aiovmm.virtqueue import bell
from tests.limits import HANGS
from tests.vm.drivers import Driver, start_drivers
from tests.vm.guest import config, counts_on

pytestmark = pytest.mark.kvm
DOORBELL = 0x60018


async def ring_forever(vm: VM) -> Driver:
    """Have a guest (letter d) ring the doorbell of its entropy device without end."""
    driver = (await start_drivers(vm))["rng"]
    await driver.set_common(0x16, 0, 2)
    notify = driver.structures[VirtioCapType.NOTIFY].address + driver.common(0x1E, 2) * driver.notify_multiplier
    vm.machine.memory.write(DOORBELL, notify.to_bytes(8, "little"))
    await counts_on(vm)
    return driver


async def echo(vm: VM, byte: bytes) -> None:
    vm.serial.write(byte)
    assert await asyncio.wait_for(vm.serial.readexactly(1), HANGS) == byte


@pytest.mark.parametrize("does", ["e", "l"])
async def test_an_echo_does_not_wait_until_the_loop_looks_by_itself(does: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a guest that polls its port and of one that takes interrupts, neither of which wants one for its output."""
    async with VM(config(does)) as vm:
        await vm.start()
        await echo(vm, b"a")  # what it sets up is over
        monkeypatch.setattr(exitloop, "DOZE", 60.0)
        for number in range(100):
            await echo(vm, b"%c" % (ord("a") + number % 16))


@pytest.mark.parametrize("does", ["x", "w", "n", "d"])
async def test_beside_floods_a_guest_is_answered(does: str) -> None:
    async with AsyncExitStack() as stack:
        rng = RngConfig() if does == "d" else None
        floods = [await stack.enter_async_context(VM(config(does, name=f"flood{i}", rng=rng))) for i in range(8)]
        asked = await stack.enter_async_context(VM(config("l", name="asked")))
        await asyncio.gather(*(vm.start() for vm in [*floods, asked]))
        await asyncio.gather(*(ring_forever(vm) if does == "d" else counts_on(vm) for vm in floods))
        for number in range(50):
            await echo(asked, b"%c" % (ord("a") + number % 16))
        await asyncio.gather(*(counts_on(vm) for vm in floods))


async def test_a_device_whose_doorbell_is_rung_without_end_serves_its_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bell, "BURST", 8)
    async with VM(config("d", rng=RngConfig())) as vm:
        await vm.start()
        driver = await ring_forever(vm)
        for _ in range(50):
            assert len(await driver.request(0, writable=[32])) == 32
        await counts_on(vm)


async def test_each_vm_has_an_account_of_what_it_takes_of_the_loop() -> None:
    async with VM(config("x")) as a, VM(config("x")) as b:
        await asyncio.gather(a.start(), b.start())
        await asyncio.gather(counts_on(a, 200), counts_on(b, 200))
        assert a.machine.parts.account is not b.machine.parts.account
        assert min(vm.machine.parts.account.seconds for vm in (a, b)) > 0
