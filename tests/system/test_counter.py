"""The one counter of an arm64 guest, after it has stood still: it goes on, or a busy guest of Linux would be mute."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from aiovmm import VM
from tests.system.busy import GAP, both_go_on, make_busy
from tests.system.conftest import RELEASES, Guests
from tests.system.guest import prompt, shell


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
@pytest.mark.parametrize("release", RELEASES)
async def test_a_busy_guest_is_not_mute_and_an_idle_one_has_the_right_time(
    guests: Guests, release: str, busy: bool, folder: Path
) -> None:
    async with VM(guests.config(release, cpus=1 if busy else 2)) as vm:
        await vm.start()
        await prompt(vm)
        if busy:
            await make_busy(vm)
        await asyncio.sleep(1)  # nothing of its shell's runs any more
        await vm.pause()
        await asyncio.sleep(GAP)
        await vm.resume()
        await goes_on(vm, busy)
        await asyncio.sleep(1)
        await vm.snapshot(folder / "snapshot")
        await vm.kill()
    await asyncio.sleep(GAP)
    async with VM.restore(folder / "snapshot") as vm:
        await vm.resume()
        await goes_on(vm, busy)


async def goes_on(vm: VM, busy: bool) -> None:
    if busy:
        await both_go_on(vm, keeps_time=False)
    else:
        assert abs(int(await shell(vm, "date +%s")) - time.time()) < 3
