"""Stock Debian guests that go on from a snapshot, and forks of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, ConsoleConfig, DiskConfig, RebootPolicy, VMConfig, VsockConfig
from tests.system.busy import GAP, both_go_on, make_busy
from tests.system.conftest import GUESTS, RELEASES, Guests
from tests.system.guest import ended, prompt, shell
from tests.system.shown import KEEPS_TIME

MIB = 1 << 20


def configured(guests: Guests, release: str, disk: Path, cpus: int = 2) -> VMConfig:
    """A guest with a device of each kind that is everywhere."""
    disk.write_bytes(os.urandom(16 * MIB))
    return guests.config(
        release,
        cpus=cpus,
        features=KEEPS_TIME,
        console=ConsoleConfig(),
        vsock=VsockConfig(),
        disks=(DiskConfig(path=disk, direct=False),),
        on_reboot=RebootPolicy.RESTART,
    )


def digest_of(disk: Path) -> str:
    return hashlib.sha256(disk.read_bytes()[: 16 * MIB]).hexdigest()


def is_told_of_generations(release: str) -> bool:
    """Whether the kernel has the driver: Debian's 6.1 has none."""
    return "CONFIG_VMGENID=y" in (GUESTS / release / "config").read_text()


async def booted(vm: VM) -> float:
    """Start it; seconds until its shell is there."""
    began = time.monotonic()
    await vm.start()
    await prompt(vm)
    return time.monotonic() - began


async def goes_on(vm: VM, disk: Path, digest: str) -> None:
    """What it had in memory and what is on its disk it still has, its clocks run and are right, and it can make new processes."""
    assert (await shell(vm, "sha256sum </tmp/data")).split()[0] == digest
    await shell(vm, "echo 3 >/proc/sys/vm/drop_caches")
    said = (await shell(vm, "dd if=/dev/vda bs=1M count=16 2>/dev/null | sha256sum", timeout=120)).split()[0]
    assert said == await asyncio.to_thread(digest_of, disk)
    before = time.time()
    now = int(await shell(vm, "date +%s"))
    assert not KEEPS_TIME or before - 2 <= now <= time.time() + 2, "its wall clock is right"
    await shell(vm, "sleep 0.2")
    assert "soft lockup" not in await shell(vm, "dmesg | tail -50")
    assert len(await shell(vm, "cat /proc/cpuinfo | grep -c ^processor")) > 0


@pytest.mark.parametrize("release", RELEASES)
async def test_a_guest_is_saved_and_goes_on_elsewhere(guests: Guests, release: str, folder: Path, host: str) -> None:
    disk = folder / "disk"
    async with VM(configured(guests, release, disk)) as vm:
        boot = await booted(vm)
        digest = (await shell(vm, "head -c 8388608 /dev/urandom >/tmp/data; sha256sum </tmp/data")).split()[0]
        await shell(vm, "(while :; do echo; done >/dev/null) & (while sleep 0.01; do date >/tmp/date; done) & true")
        snapshot = await vm.snapshot(folder / "snapshot")
        print(f"boot {boot:.3f} s, {snapshot}")
        await goes_on(vm, disk, digest)
        await vm.kill()
    for _ in range(2 if host == "x86_64" else 1):  # once more from the same; EL2 is slower
        began = time.monotonic()
        async with VM.restore(folder / "snapshot", name="again", verify=True) as vm:
            await vm.resume()
            await shell(vm, "true")
            took = time.monotonic() - began
            print(f"restored until it answers: {took:.3f} s, {took / boot:.4f} of its boot")
            await goes_on(vm, disk, digest)
            if is_told_of_generations(release):
                assert "reseeded due to virtual machine fork" in await shell(vm, "dmesg | grep crng")
            await shell(vm, "dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null")
            if host != "x86_64":  # whose kernels for clouds have no driver for the button
                vm.serial.write(b"poweroff\n")
                await ended(vm)
            status = await vm.stop(30)
            assert status.ok, status


@pytest.mark.parametrize("features", [(), KEEPS_TIME], ids=["kvm-clock", "tsc"])
@pytest.mark.parametrize("release", RELEASES)
async def test_a_busy_guest_is_not_mute_for_as_long_as_it_stood_still(
    guests: Guests, release: str, features: tuple[str, ...], folder: Path
) -> None:
    """Both of its tasks go on at once, and its shell: none has run meanwhile by the guest's clocks."""
    async with VM(guests.config(release, features=features)) as vm:
        await booted(vm)
        source = await shell(vm, "cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
        assert source.strip() == ("tsc" if features else "kvm-clock")
        await make_busy(vm)
        await vm.pause()
        await asyncio.sleep(GAP)
        await vm.resume()
        await both_go_on(vm, bool(features))
        await vm.snapshot(folder / "snapshot")
        await vm.kill()
    await asyncio.sleep(GAP)
    async with VM.restore(folder / "snapshot") as vm:
        await vm.resume()
        await both_go_on(vm, bool(features))


@pytest.mark.parametrize("release", RELEASES)
async def test_forks_are_each_somebody_else(guests: Guests, release: str, folder: Path) -> None:
    config = replace(configured(guests, release, folder / "disk"), disks=())
    async with VM(config) as vm:
        boot = await booted(vm)
        digest = (await shell(vm, "head -c 1048576 /dev/urandom >/tmp/data; sha256sum </tmp/data")).split()[0]
        template = await vm.freeze()
    async with template, AsyncExitStack() as stack:
        children = [await stack.enter_async_context(template.fork(vsock_cid=100 + i)) for i in range(8)]
        random = await asyncio.gather(*(first_random(vm) for vm in children))
        if is_told_of_generations(release):
            assert len(set(random)) == len(children), "each has random numbers of its own"
        for child in children:
            assert (await shell(child, "sha256sum </tmp/data")).split()[0] == digest
        began = time.monotonic()
        async with template.fork() as child:
            await child.resume()
            await shell(child, "true")
            took = time.monotonic() - began
            print(f"boot {boot:.3f} s; forked until it answers: {took:.3f} s, {took / boot:.4f} of that")
            async with child_of(child) as grandchild:
                await grandchild.resume()
                assert (await shell(grandchild, "sha256sum </tmp/data")).split()[0] == digest


async def first_random(vm: VM) -> str:
    await vm.resume()
    return await shell(vm, "head -c 32 /dev/urandom | sha256sum")


@asynccontextmanager
async def child_of(vm: VM) -> AsyncIterator[VM]:
    async with await vm.freeze() as template, template.fork() as child:
        yield child
