"""virtio-rng and virtio-console under the drivers of stock kernels."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
from pathlib import Path

import pytest

from aiovmm import VM, ConsoleConfig, ConsoleMode, EventKind, ExitReason, RebootPolicy, RngConfig
from tests.devices.virtio.fips import failures
from tests.system.conftest import RELEASES, Guests
from tests.system.guest import BOOT, ended, limit, prompt, shell
from tests.system.shown import CONSOLE

MIB = 1 << 20
HVC0 = ConsoleConfig(ConsoleMode.NULL, history=8 * MIB)
BOTH = f"console={CONSOLE} console=hvc0 panic=-1 quiet"


async def raw_output(vm: VM, command: str, size: int, timeout: float = 120.0) -> bytes:
    """`size` bytes that `command` prints on hvc0 with the terminal's processing off."""
    await vm.console.send(f"stty raw -echo; echo be''gin; {command}; stty sane\n".encode())
    async with asyncio.timeout(limit(timeout)):
        await vm.console.readuntil(b"begin\n")
        data = await vm.console.readexactly(size)
    await prompt(vm, vm.console, limit(timeout))
    return data


@pytest.mark.parametrize("release", RELEASES)
async def test_hvc0_is_a_shell_with_a_size_and_carries_bytes_both_ways(guests: Guests, release: str) -> None:
    config = guests.config(release, cmdline="console=hvc0 panic=-1 quiet", console=HVC0)
    async with VM(config) as vm:
        vm.console.resize(100, 37)
        await vm.start()
        await prompt(vm, vm.console)
        assert (await shell(vm, "stty size", console=vm.console)).strip() == "37 100"
        vm.console.resize(132, 43)
        await shell(vm, "until [ \"$(stty size)\" = '43 132' ]; do sleep 0.1; done", console=vm.console)

        digest = await shell(vm, "head -c 2097152 /dev/urandom >/tmp/out; sha256sum </tmp/out", console=vm.console)
        data = await raw_output(vm, "cat /tmp/out", 2 * MIB)
        assert hashlib.sha256(data).hexdigest() == digest.split()[0]

        # all bytes but ^O, which is the SysRq key on a hvc console of Linux (hvc_console.c)
        data = random.Random(1).randbytes(256 << 10).replace(b"\x0f", b"\x0e")
        await vm.console.send(b"stty raw -echo; echo re''ady; head -c 262144 >/tmp/in; stty sane; echo do''ne\n")
        await vm.console.expect(rb"ready\n")
        await vm.console.send(data)
        await vm.console.expect(rb"done", timeout=limit(120))
        await prompt(vm, vm.console)
        digest = await shell(vm, "sha256sum </tmp/in", console=vm.console)
        assert digest.split()[0] == hashlib.sha256(data).hexdigest()

        assert not vm.serial.history
        vm.console.write(b"poweroff\n")
        assert (await ended(vm)).reason is ExitReason.SHUTDOWN


@pytest.mark.parametrize("release", RELEASES)
async def test_a_megabyte_from_hwrng_is_random(guests: Guests, release: str) -> None:
    async with VM(guests.config(release, cmdline=BOTH, console=HVC0)) as vm:
        await vm.start()
        await prompt(vm, vm.console)
        assert (await shell(vm, "cat /sys/class/misc/hw_random/rng_current")).startswith("virtio_rng")
        data = await raw_output(vm, "dd if=/dev/hwrng bs=4096 count=257 iflag=fullblock 2>/dev/null", 257 * 4096)
        assert failures(data) <= 3  # as rngtest: of 420 blocks a good source fails 1 in 1,250
        assert vm.device("rng").device_id == 4


@pytest.mark.timeout(600)
@pytest.mark.parametrize("release", RELEASES)
async def test_the_entropy_driver_comes_and_goes_under_load(guests: Guests, release: str) -> None:
    async with VM(guests.config(release)) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, "dmesg -c >/dev/null")
        for _ in range(5):  # Linux's thread that reads waits ten seconds after an error
            await reload_under_load(vm, "virtio_rng", "cat /dev/hwrng >/dev/null")
            await shell(vm, "dd if=/dev/hwrng bs=4096 count=4 iflag=fullblock of=/dev/null 2>/dev/null")
        assert not re.search(r"WARNING: CPU|BUG:|Oops", await shell(vm, "dmesg"))
        await vm.kill()
        assert EventKind.DEVICE_ERROR not in [e.kind async for e in vm.events(from_start=True)]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("rounds", [3, 20], ids=["3 rounds", "20 rounds"])
async def test_the_console_driver_comes_and_goes_under_load(guests: Guests, release: str, rounds: int) -> None:
    async with VM(guests.config(release, console=HVC0)) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, "dmesg -c >/dev/null")
        for round_ in range(rounds):
            await reload_under_load(vm, "virtio_console", "yes load >/dev/hvc0")
            await vm.console.expect(rb"load", timeout=limit(20))
            await shell(vm, f"echo round {round_} >/dev/hvc0")
            await vm.console.expect(f"round {round_}\r\n".encode(), timeout=limit(20))
        assert not re.search(r"WARNING: CPU|BUG:|Oops", await shell(vm, "dmesg"))
        await vm.kill()
        assert EventKind.DEVICE_ERROR not in [e.kind async for e in vm.events(from_start=True)]


@pytest.mark.parametrize("release", RELEASES)
async def test_the_console_outlives_a_reboot_under_load(guests: Guests, release: str) -> None:
    async with VM(guests.config(release, console=HVC0, on_reboot=RebootPolicy.RESTART)) as vm:
        events = vm.events()
        await vm.start()
        await prompt(vm)
        vm.serial.write(b"yes load >/dev/hvc0 & cat /dev/hwrng >/dev/null & reboot\n")
        async for event in events:
            if event.kind is EventKind.REBOOTED:
                break
        await vm.serial.expect(rb"aiovmm: init", timeout=limit(60))  # the old shell's prompt may come after `reboot`
        await prompt(vm)
        await shell(vm, "(head -n 1 </dev/hvc0 >/tmp/line &); echo after the reboot >/dev/hvc0")
        await vm.console.expect(rb"after the reboot", timeout=limit(20))
        vm.console.write(b"typed after it\n")
        await shell(vm, "until grep -q 'typed after it' /tmp/line; do sleep 0.1; done")
        vm.console.resize(77, 21)
        await shell(vm, "until [ \"$(stty size </dev/hvc0)\" = '21 77' ]; do sleep 0.1; done")
        await vm.kill()
        assert EventKind.DEVICE_ERROR not in [e.kind async for e in vm.events(from_start=True)]


async def reload_under_load(vm: VM, module: str, load: str) -> None:
    """Unload and load the driver, or where the kernel has it built in unbind and bind it, while `load` uses its device."""
    driver = f"/sys/bus/virtio/drivers/{module}"
    await shell(vm, f"d=$(basename $(ls -d {driver}/virtio*)); ({load}) 2>/dev/null & sleep 0.2; kill -0 $!")
    away = f"if grep -q ^{module} /proc/modules; then rmmod {module}; else echo $d >{driver}/unbind; fi"
    again = f"if [ -d {driver} ]; then echo $d >{driver}/bind; else modprobe {module}; fi"
    await shell(vm, f"{away} && ! ls {driver}/$d 2>/dev/null && {again}")
    await shell(vm, f"kill $! 2>/dev/null; wait; ls -d {driver}/$d")


async def test_a_panic_on_hvc0_is_a_panic(guests: Guests) -> None:
    async with VM(guests.config(cmdline="console=hvc0 panic=-1", console=HVC0)) as vm:
        await vm.start()
        await prompt(vm, vm.console)
        vm.console.write(b"echo c > /proc/sysrq-trigger\n")
        status = await ended(vm)
    assert status.reason is ExitReason.PANIC


async def test_an_entropy_source_that_ends_fails_the_device_and_not_the_guest(guests: Guests, tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(os.urandom(100))
    async with VM(guests.config(rng=RngConfig(src=path))) as vm:
        events = vm.events()
        await vm.start()
        async with asyncio.timeout(limit(120)):
            async for event in events:
                if event.kind is EventKind.DEVICE_ERROR:
                    break
        assert "the source has ended" in event.detail
        await prompt(vm)


@pytest.mark.parametrize("where", ["serial", "console"])
async def test_what_a_command_prints_last_arrives(guests: Guests, where: str) -> None:
    """Its terminal is hung up when the session on it ends; sent it is by another processor, maybe, and later."""
    cmdline = f'console={CONSOLE if where == "serial" else "hvc0"} panic=-1 quiet aiovmm.run="seq 3000"'
    async with VM(guests.config(cpus=2, cmdline=cmdline, console=HVC0)) as vm:
        await vm.start()
        stream = getattr(vm, where)
        async with asyncio.timeout(BOOT):
            await stream.readuntil(b"run begin")
            printed = await stream.readuntil(b"run end")
    assert printed.split()[:-3] == [b"%d" % number for number in range(1, 3001)]
