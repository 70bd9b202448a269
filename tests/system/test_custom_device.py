"""A device of the embedder's own under a driver of Linux that was written for another."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aiovmm import VM, EventKind, ExitReason, VirtioDevice
from aiovmm.virtqueue import Queue
from examples.custom_device import Dice
from tests.system.conftest import RELEASES, Guests
from tests.system.guest import ended, limit, prompt, shell


class Broken(VirtioDevice):
    """Has a bug: it raises at the first request."""

    device_id = 4
    name = "broken"

    async def run(self, queues: list[Queue], features: int) -> None:
        async for chain in queues[0]:
            raise ZeroDivisionError(f"while serving {chain.writable_size} bytes")


@pytest.mark.parametrize("release", RELEASES)
async def test_linux_reads_dice_from_its_generator(guests: Guests, release: str) -> None:
    dice = Dice()
    async with VM(replace(guests.config(release), rng=None), devices=[dice]) as vm:
        await vm.start()
        await prompt(vm)
        assert vm.device("custom0") is dice
        assert (await shell(vm, "cat /sys/class/misc/hw_random/rng_current")).startswith("virtio_rng")
        rolls = (await shell(vm, "head -c 6000 /dev/hwrng | fold -w 60; echo")).replace("\n", "")
        assert len(rolls) == 6000
        assert all(800 < rolls.count(digit) < 1200 for digit in "123456")


async def test_a_bug_in_a_device_is_an_event_and_the_guest_lives(guests: Guests) -> None:
    async with VM(replace(guests.config(), rng=None), devices=[Broken()]) as vm:
        events = vm.events()
        await vm.start()
        async with asyncio.timeout(limit(120)):
            async for event in events:
                if event.kind is EventKind.DEVICE_ERROR:
                    break
        assert event.device == "custom0"
        assert "while serving" in event.detail
        await prompt(vm)
        assert (await shell(vm, "echo alive")).strip() == "alive"
        vm.serial.write(b"poweroff\n")
        assert (await ended(vm)).reason is ExitReason.SHUTDOWN
