"""The PL031 under Linux's own driver: the guest's date is its, it can be set, and its alarm wakes who waits for it.

An arm64 guest has no other clock that tells the date: its counter starts at power-on, and there is no kvm-clock.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM
from aiovmm.image import build_initramfs
from tests.system.conftest import GUESTS, RELEASES, Guests, with_libraries
from tests.system.guest import prompt, shell

RTC = "/sys/class/rtc/rtc0"
YEAR = 365 * 86400


@pytest.fixture
def with_rtcwake(tmp_path: Path, release: str) -> Path:
    """An initramfs that has the host's rtcwake."""
    path = tmp_path / "rtcwake.cpio"
    files = with_libraries("/usr/sbin/rtcwake")
    path.write_bytes(
        build_initramfs(busybox=GUESTS / "bin/busybox", modules=GUESTS / release / "modules", files=files).data
    )
    return path


async def number(vm: VM, command: str) -> int:
    return int(await shell(vm, command))


async def alarms(vm: VM) -> int:
    """How many interrupts of the clock the guest has taken."""
    (line,) = (await shell(vm, "grep rtc-pl031 /proc/interrupts")).splitlines()
    return int(line.split()[1])


async def same_as_the_host(vm: VM, command: str) -> None:
    """The guest's seconds since 1970, of the time at which it was asked."""
    before = int(time.time())
    told = await number(vm, command)
    assert before - 1 <= told <= time.time() + 1


@pytest.mark.parametrize("release", RELEASES)
async def test_the_guests_date_is_the_clocks_and_its_alarm_wakes(
    guests: Guests, release: str, with_rtcwake: Path
) -> None:
    config = guests.config(release)
    async with VM(replace(config, payload=replace(config.payload, initramfs=with_rtcwake))) as vm:
        await vm.start()
        await prompt(vm)
        assert "rtc-pl031" in await shell(vm, f"cat {RTC}/name")
        assert "rtc-pl031" in await shell(vm, "dmesg | grep 'setting system clock'")
        await same_as_the_host(vm, "date +%s")
        await same_as_the_host(vm, f"cat {RTC}/since_epoch")
        assert await alarms(vm) == 0

        began = await number(vm, f"cat {RTC}/since_epoch")
        await shell(vm, "rtcwake -u -d rtc0 -m on -s 3")  # it reads /dev/rtc0 until the alarm's interrupt is told there
        assert await number(vm, f"cat {RTC}/since_epoch") >= began + 3
        assert await alarms(vm) == 1

        # Set by a year, it goes on from there, as does the alarm; the host's stays where it is.
        await shell(vm, f"date -s @$(($(date +%s) - {YEAR})) && hwclock -u -w")
        await same_as_the_host(vm, f"echo $(($(cat {RTC}/since_epoch) + {YEAR}))")
        await shell(vm, "rtcwake -u -d rtc0 -m on -s 2")
        assert await alarms(vm) == 2

        await shell(vm, "rtcwake -u -d rtc0 -m no -s 3600")
        assert (await shell(vm, f'test -n "$(cat {RTC}/wakealarm)" && echo set')).strip() == "set"
        assert await alarms(vm) == 2
