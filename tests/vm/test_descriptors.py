"""How many descriptors a guest has: what bounds the guests of a process."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from aiovmm import (
    VM,
    ConsoleConfig,
    ConsoleMode,
    DiskConfig,
    NetConfig,
    RngConfig,
    VMConfig,
    VsockConfig,
)
from tests.vm.drivers import start_drivers
from tests.vm.guest import config

pytestmark = pytest.mark.kvm
HAS_TUN = os.path.exists("/dev/net/tun") and os.geteuid() == 0


def open_files() -> Counter[str]:
    """By what they are."""
    names: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the list
            continue
        names[target.removeprefix("anon_inode:").split(":[")[0]] += 1
    return names


def five(folder: Path, name: str = "guest") -> VMConfig:
    """A disk, a card, a console, entropy and vsock."""
    disk = folder / f"{name}.raw"
    disk.write_bytes(bytes(1 << 20))
    return config(
        "hi",
        name=name,
        disks=(DiskConfig(path=disk),),
        nets=(NetConfig(),),
        console=ConsoleConfig(mode=ConsoleMode.NULL),
        rng=RngConfig(),
        vsock=VsockConfig(socket=folder / f"{name}.vsock"),
    )


async def test_a_guest_without_devices_has_three_and_one_more_a_processor() -> None:
    async with VM(config("hi")) as first:
        await first.start()
        before = open_files()
        async with VM(config("hi")) as vm:
            await vm.start()
            assert open_files() - before == Counter({"kvm-vm": 1, "kvm-vcpu:0": 1, "[eventfd]": 1})
        async with VM(config("hi", 3)) as vm:
            await vm.start()
            assert (open_files() - before).total() == 5
        assert open_files() == before
    assert "/dev/kvm" not in open_files(), "which the last one has closed"


@pytest.mark.skipif(not HAS_TUN, reason="a network card needs /dev/net/tun, and root")
async def test_a_guest_with_five_devices_at_work_has_at_most_twelve(tmp_path: Path) -> None:
    async with VM(config("hi", rng=RngConfig())) as first:
        await first.start()
        before = open_files()
        async with VM(five(tmp_path)) as vm:
            await vm.start()
            await vm.serial.expect(rb"hello\n", timeout=20)
            assert (open_files() - before).total() <= 7, "no driver has come"
            drivers = await start_drivers(vm)
            assert len(drivers) == 5
            there = open_files() - before
            assert there["[eventfd]"] == 6, "one for its exits, one a device"
            assert there.total() <= 12, there
            await drivers["rng"].request(0, writable=[32])
            assert (open_files() - before).total() == there.total()
        assert open_files() == before
