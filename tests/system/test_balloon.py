"""virtio-balloon under the drivers of stock kernels: memory comes back, unasked and asked for."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, BalloonConfig, MemoryConfig
from tests.system.conftest import RELEASES, Guests
from tests.system.guest import limit, prompt, shell

MIB = 1 << 20


def resident(vm: VM) -> int:
    """Bytes of the guest's RAM that this process has."""
    (region, *_) = vm.machine.memory.regions
    start = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start = int(match[1], 16) <= region.host < int(match[2], 16)
        elif start and line.startswith("Rss:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the memory is not mapped")


async def available(vm: VM) -> int:
    return int((await shell(vm, "grep MemAvailable /proc/meminfo")).split()[1]) << 10


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("shared", "iommu"), [(False, False), (True, True)])
async def test_a_guest_that_frees_memory_gives_it_back(guests: Guests, release: str, shared: bool, iommu: bool) -> None:
    made = guests.config(
        release,
        balloon=BalloonConfig(deflate_on_oom=True, free_page_reporting=True, iommu=iommu),
    )
    config = replace(made, memory=MemoryConfig(384 * MIB, shared=shared))
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        await shell(
            vm, "mount -t tmpfs -o size=300m none /mnt; dd if=/dev/zero of=/mnt/full bs=1M count=200 2>/dev/null"
        )
        full = resident(vm)
        given = vm.balloon.given_back
        await shell(vm, "rm /mnt/full")
        async with asyncio.timeout(limit(60)):
            while full - resident(vm) < 180 * MIB:  # noqa: ASYNC110 - it is the guest that acts, which was not asked
                await asyncio.sleep(0.1)
            while vm.balloon.given_back - given < 180 * MIB:  # noqa: ASYNC110 - told when a report as a whole is carried out
                await asyncio.sleep(0.1)

        before = await available(vm)
        await vm.balloon.resize(128 * MIB, timeout=limit(60))
        assert vm.balloon.actual == 128 * MIB
        assert before - await available(vm) > 110 * MIB
        stats = await vm.balloon.stats(timeout=limit(60))
        assert stats.available is not None
        assert abs(stats.available - await available(vm)) < 16 * MIB
        await vm.balloon.resize(0, timeout=limit(60))
        async with asyncio.timeout(limit(60)):
            # Pages that are being reported are neither free nor anybody's, up to 128 MiB of them.
            while before - await available(vm) >= 16 * MIB:  # noqa: ASYNC110 - it is the guest that acts
                await asyncio.sleep(0.1)
