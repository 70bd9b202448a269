"""Stock kernels boot to a shell, see the machine they were given, and end as they should."""

from __future__ import annotations

import asyncio

import pytest

from aiovmm import VM, EventKind, ExitReason, RebootPolicy, VMState
from tests.system.conftest import RELEASES, Guests
from tests.system.guest import BOOT, prompt, shell


@pytest.mark.parametrize("elf", [False, True], ids=["bzImage", "vmlinux"])
@pytest.mark.parametrize("release", RELEASES)
async def test_a_stock_kernel_boots_to_a_shell_and_powers_off(guests: Guests, release: str, elf: bool) -> None:
    async with VM(guests.config(release, elf=elf)) as vm:
        await vm.start()
        await prompt(vm)
        assert f" {release}." in await shell(vm, "uname -a")
        assert (await shell(vm, "nproc")).strip() == "1"
        log = await shell(vm, "dmesg")
        assert "kvm-clock" in log
        errors = [
            line for line in log.splitlines() if "ACPI" in line and ("rror" in line or "BUG" in line or "warn" in line)
        ]
        assert not errors
        vm.serial.write(b"poweroff\n")
        status = await asyncio.wait_for(vm.wait(), 60)
    assert status.reason is ExitReason.SHUTDOWN
    assert status.ok


async def test_four_processors(guests: Guests) -> None:
    async with VM(guests.config(cpus=4)) as vm:
        await vm.start()
        await prompt(vm)
        assert (await shell(vm, "nproc")).strip() == "4"
        topology = await shell(vm, "cat /sys/devices/system/cpu/cpu*/topology/core_id")
        assert sorted(topology.split()) == ["0", "1", "2", "3"]


async def test_five_gigabytes_lie_around_the_pci_hole(guests: Guests) -> None:
    async with VM(guests.config(memory=5 << 10)) as vm:
        await vm.start()
        await prompt(vm)
        total = int((await shell(vm, "grep MemTotal /proc/meminfo")).split()[1]) << 10
        assert 4.7 * (1 << 30) < total <= 5 << 30
        # a page beyond 4 GiB can be used: half of all memory would not fit below the hole and the kernel's own
        await shell(vm, "dd if=/dev/zero of=/tmp/x bs=1M count=64 && rm /tmp/x")


async def test_the_power_button_is_heeded(guests: Guests) -> None:
    async with VM(guests.config()) as vm:
        await vm.start()
        await prompt(vm)
        vm.shutdown()
        status = await asyncio.wait_for(vm.wait(), 60)
    assert status.reason is ExitReason.SHUTDOWN


async def test_a_reboot_exits_when_the_policy_says_so(guests: Guests) -> None:
    async with VM(guests.config(on_reboot=RebootPolicy.EXIT)) as vm:
        await vm.start()
        await prompt(vm)
        vm.serial.write(b"reboot\n")
        status = await asyncio.wait_for(vm.wait(), 60)
    assert status.reason is ExitReason.REBOOT


async def test_a_reboot_restarts_when_the_policy_says_so(guests: Guests) -> None:
    async with VM(guests.config(on_reboot=RebootPolicy.RESTART)) as vm:
        events = vm.events()
        await vm.start()
        await prompt(vm)
        await shell(vm, "touch /tmp/first-life")
        vm.serial.write(b"reboot\n")
        async for event in events:
            if event.kind is EventKind.REBOOTED:
                break
        await vm.serial.expect(rb"aiovmm: init", timeout=BOOT)  # a prompt before it is the first life's
        await prompt(vm)
        assert vm.state is VMState.RUNNING
        assert (await shell(vm, "ls /tmp")).strip() == ""
        vm.serial.write(b"poweroff\n")
        assert (await asyncio.wait_for(vm.wait(), 60)).reason is ExitReason.SHUTDOWN


async def test_a_panic_is_told_apart_from_a_reboot(guests: Guests) -> None:
    async with VM(guests.config()) as vm:
        await vm.start()
        await prompt(vm)
        vm.serial.write(b"echo c > /proc/sysrq-trigger\n")
        status = await asyncio.wait_for(vm.wait(), 60)
        kinds = [e.kind async for e in vm.events(from_start=True)]
    assert status.reason is ExitReason.PANIC
    assert EventKind.PANICKED in kinds


async def test_a_guest_that_hangs_is_killed_by_stop(guests: Guests) -> None:
    async with VM(guests.config(cmdline="console=ttyS0 quiet aiovmm.run='sleep 1000'")) as vm:
        await vm.start()
        await vm.serial.expect(rb"run begin", timeout=120)
        vm.serial.write(b"\x03")
        status = await vm.stop(timeout=0.05)
    assert status.reason is ExitReason.KILLED


async def test_a_paused_guest_stands_still_and_goes_on(guests: Guests) -> None:
    async with VM(guests.config()) as vm:
        await vm.start()
        await prompt(vm)
        vm.serial.write(b"while :; do echo tick; done\n")
        await vm.serial.expect(rb"tick\r\ntick", timeout=30)
        await vm.pause()
        assert vm.state is VMState.PAUSED
        await asyncio.sleep(0.2)  # what was posted before the pause arrives
        before = vm.serial.history_lost + len(vm.serial.history)
        await asyncio.sleep(0.5)
        assert vm.serial.history_lost + len(vm.serial.history) == before
        await vm.resume()
        await vm.serial.expect(rb"tick\r\ntick", timeout=30)
        await asyncio.wait_for(vm.kill(), 5)
