"""Stock kernels boot to a shell, see the machine they were given, and end as they should."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aiovmm import VM, EventKind, ExitReason, PayloadConfig, RebootPolicy, VMState
from tests.system.conftest import GUESTS, RELEASES, Guests
from tests.system.guest import BOOT, ended, limit, prompt, reboot, shell
from tests.system.shown import SHOWN, with_button

MIB, GIB = 1 << 20, 1 << 30
EACH = ["6.1", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("6.12", "newest"))]


async def memory_total(vm: VM) -> int:
    """Bytes of memory as `free` shows them."""
    return int((await shell(vm, "free -k | grep Mem:")).split()[1]) << 10


@pytest.mark.parametrize("elf", [False, True], ids=["image", "elf"])
@pytest.mark.parametrize("release", RELEASES)
async def test_a_stock_kernel_boots_to_a_shell_and_powers_off(guests: Guests, release: str, elf: bool) -> None:
    async with VM(guests.config(release, elf=elf)) as vm:
        await vm.start()
        await prompt(vm)
        assert f" {(GUESTS / release / 'release').read_text().strip()} " in await shell(vm, "uname -a")
        assert (await shell(vm, "nproc")).strip() == "1"
        assert 200 * MIB < await memory_total(vm) <= 256 * MIB
        log = await shell(vm, "dmesg")
        assert SHOWN.clock in log
        errors = [
            line for line in log.splitlines() if "ACPI" in line and ("rror" in line or "BUG" in line or "warn" in line)
        ]
        assert not errors
        vm.serial.write(b"poweroff\n")
        status = await ended(vm)
    assert status.reason is ExitReason.SHUTDOWN
    assert status.ok


@pytest.mark.parametrize("release", EACH)
async def test_four_processors_and_a_stop_that_the_guest_heeds(guests: Guests, release: str) -> None:
    async with VM(guests.config(with_button(release), cpus=4)) as vm:
        await vm.start()
        await prompt(vm)
        assert (await shell(vm, "nproc")).strip() == "4"
        topology = await shell(vm, "cat /sys/devices/system/cpu/cpu*/topology/core_id")
        assert sorted(topology.split()) == ["0", "1", "2", "3"]
        assert (await vm.stop(timeout=limit(60))).reason is ExitReason.SHUTDOWN


async def free_above_4_gib(vm: VM) -> int:
    """Free bytes in the zone that begins there."""
    zone = await shell(vm, "sed -n '/zone *Normal/,/nr_free_pages/p' /proc/zoneinfo")
    return int(zone.split()[zone.split().index("nr_free_pages") + 1]) * 4096


@pytest.mark.parametrize("release", EACH)
async def test_five_gigabytes_lie_around_the_pci_hole(guests: Guests, release: str) -> None:
    async with VM(guests.config(release, memory=5 << 10)) as vm:
        await vm.start()
        await prompt(vm)
        assert 4.7 * GIB < await memory_total(vm) <= 5 * GIB
        ram = [line.split()[0] for line in (await shell(vm, "grep 'System RAM' /proc/iomem")).splitlines()]
        assert ram[-1] == SHOWN.high_memory
        assert all(int(part.split("-")[1], 16) < SHOWN.low_end for part in ram[:-1])
        before = await free_above_4_gib(vm)
        assert before > 1.5 * GIB
        await shell(vm, "head -c 32m /dev/urandom >/tmp/x && md5sum /tmp/x >/tmp/sum", timeout=120)
        assert before - await free_above_4_gib(vm) > 28 * MIB, "the file does not lie there"
        await shell(vm, "md5sum -c /tmp/sum", timeout=120)


@pytest.mark.parametrize("release", EACH)
async def test_the_power_button_is_heeded(guests: Guests, release: str) -> None:
    async with VM(guests.config(with_button(release))) as vm:
        await vm.start()
        await prompt(vm)
        vm.shutdown()
        status = await ended(vm)
    assert status.reason is ExitReason.SHUTDOWN


@pytest.mark.parametrize("release", EACH)
async def test_a_reboot_exits_when_the_policy_says_so(guests: Guests, release: str) -> None:
    async with VM(guests.config(release, on_reboot=RebootPolicy.EXIT)) as vm:
        await vm.start()
        await prompt(vm)
        vm.serial.write(b"reboot\n")
        status = await ended(vm)
    assert status.reason is ExitReason.REBOOT


@pytest.mark.parametrize("release", EACH)
async def test_a_reboot_restarts_when_the_policy_says_so(guests: Guests, release: str) -> None:
    async with VM(guests.config(release, on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, "touch /tmp/first-life")
        await reboot(vm, b"reboot")
        await vm.serial.expect(rb"aiovmm: init", timeout=BOOT)  # a prompt before it is the first life's
        await prompt(vm)
        assert vm.state is VMState.RUNNING
        assert (await shell(vm, "ls /tmp")).strip() == ""
        vm.serial.write(b"poweroff\n")
        assert (await ended(vm)).reason is ExitReason.SHUTDOWN


async def test_linux_that_reboots_by_a_triple_fault(guests: Guests) -> None:
    """It has run user space, and means it."""
    async with VM(guests.config(cmdline="console=ttyS0 panic=-1 quiet reboot=t", on_reboot=RebootPolicy.EXIT)) as vm:
        await vm.start()
        await prompt(vm)
        vm.serial.write(b"reboot\n")
        status = await ended(vm)
    assert (status.reason, status.detail) == (ExitReason.REBOOT, "triple fault of vCPU 0")


async def test_linux_that_faults_before_it_has_run_user_space(guests: Guests) -> None:
    """Here because it finds none, and is told to reset by such a fault. It has no console: what it says there would tell of the
    panic that this is."""
    config = guests.config()
    kernel_alone = PayloadConfig(config.payload.kernel, None, "panic=-1 reboot=t")
    config = replace(config, payload=kernel_alone, on_reboot=RebootPolicy.RESTART)
    async with VM(config) as vm:
        await vm.start()
        status = await asyncio.wait_for(vm.wait(), BOOT)
    assert status.reason is ExitReason.TRIPLE_FAULT


@pytest.mark.parametrize("release", EACH)
async def test_a_panic_is_told_apart_from_a_reboot(guests: Guests, release: str) -> None:
    async with VM(guests.config(release)) as vm:
        await vm.start()
        await prompt(vm)
        vm.serial.write(b"echo c > /proc/sysrq-trigger\n")
        status = await ended(vm)
        kinds = [e.kind async for e in vm.events(from_start=True)]
    assert status.reason is ExitReason.PANIC
    assert EventKind.PANICKED in kinds


DEAF = (  # what reads the power button in the guest's init, and the shell that waits for it, end
    "for p in $(pidof dd); do parent=$(awk '/PPid/ {print $2}' /proc/$p/status); kill -9 $parent $p; done; ! pidof dd"
)
WITNESS = "dd bs=24 count=1 </dev/input/event0 >/dev/null 2>&1 && echo pressed && sleep 2 && echo on"


async def test_a_guest_that_ignores_the_power_button_is_killed_after_the_timeout(guests: Guests) -> None:
    async with VM(guests.config(with_button("6.1"))) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, DEAF)
        await shell(vm, f"({WITNESS}) & :")
        status = await vm.stop(timeout=15)  # one that heeds it is gone in a fraction of that
        assert b"pressed\r\non\r\n" in vm.serial.history, "it saw the button, and had time to act"
    assert status.reason is ExitReason.KILLED


async def test_a_paused_guest_stands_still_and_goes_on(guests: Guests) -> None:
    async with VM(guests.config()) as vm:
        await vm.start()
        await prompt(vm)
        vm.serial.write(b"while :; do echo tick; done\n")
        await vm.serial.expect(rb"tick\r\ntick", timeout=limit(30))
        await vm.pause()
        assert vm.state is VMState.PAUSED
        await asyncio.sleep(0.2)  # what was posted before the pause arrives
        before = vm.serial.history_lost + len(vm.serial.history)
        await asyncio.sleep(0.5)
        assert vm.serial.history_lost + len(vm.serial.history) == before
        await vm.resume()
        await vm.serial.expect(rb"tick\r\ntick", timeout=limit(30))
        await asyncio.wait_for(vm.kill(), 5)
