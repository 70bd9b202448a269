"""Devices of the host and persistent memory that come and go side by side, asked for by callers of whom some give up.

KVM is the real one, VFIO a model (tests/vfio/kernel.py), and the guest looks and lets go as it should.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovmm import VM, ConfigError, DeviceConfig, HotplugTimeout, PlatformConfig, PmemConfig, RebootPolicy
from aiovmm.bus import Space
from aiovmm.config import PlacedConfig
from aiovmm.machine.architecture import board_of_host
from tests.limits import HANGS
from tests.open_files import descriptors
from tests.vfio.kernel import FakeKernel, in_the_hosts_place
from tests.vm.guest import config

RAM = 4 << 20
ROUNDS = 12

pytestmark = pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    with in_the_hosts_place(tmp_path, monkeypatch) as kernel:
        yield kernel


async def come_and_go(vm: VM, placed: PlacedConfig, dice: random.Random) -> None:
    """Whatever becomes of a request, the next one is served, and in the end it is not there."""
    for _ in range(ROUNDS):
        adding = asyncio.ensure_future(vm.add(placed, timeout=dice.choice((None, 0, 0.005))))
        if dice.random() < 0.3:
            await asyncio.sleep(dice.random() * 0.01)
            adding.cancel()
        (added,) = await asyncio.gather(adding, return_exceptions=True)
        assert isinstance(added, str | asyncio.CancelledError | HotplugTimeout | ConfigError), added
        removing = asyncio.ensure_future(vm.remove(placed.id or "", timeout=0.5, force=True))
        if dice.random() < 0.2:
            await asyncio.sleep(dice.random() * 0.005)
            removing.cancel()
        (removed,) = await asyncio.gather(removing, return_exceptions=True)
        assert isinstance(removed, asyncio.CancelledError | KeyError | None), removed
    (removed,) = await asyncio.gather(vm.remove(placed.id or "", timeout=1, force=True), return_exceptions=True)
    assert isinstance(removed, KeyError | None), removed


@pytest.mark.parametrize("seed", range(4))
async def test_all_of_it_side_by_side(kernel: FakeKernel, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    for number in range(3):
        kernel.add(f"0000:0{number}:00.0", number // 2)  # two are of one group
    (tmp_path / "image").write_bytes(bytes(4 << 20))
    devices: list[PlacedConfig] = [
        *(DeviceConfig(path=kernel.path(f"0000:0{number}:00.0"), id=f"h{number}") for number in range(3)),
        PmemConfig(file=tmp_path / "image", id="pm"),
    ]
    platform = PlatformConfig(num_pci_segments=2)
    async with VM(config("P", platform=platform, on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        before: list[int] = []
        for _ in range(2):
            async with asyncio.timeout(HANGS):
                await asyncio.gather(*(come_and_go(vm, placed, random.Random(dice.random())) for placed in devices))
            assert kernel.at_rest
            assert [(region.gpa, region.size) for region in vm.machine.memory.regions] == [(0, RAM)]
            assert not vm.config.devices
            assert not vm.config.pmems
            assert not vm.stats().devices
            before.append(descriptors())
        assert before[0] == before[1]


@pytest.mark.parametrize("seed", range(3))
async def test_a_guest_that_is_reset_meanwhile(kernel: FakeKernel, seed: int) -> None:
    dice = random.Random(seed)
    for number in range(2):
        kernel.add(f"0000:0{number}:00.0", number)
    devices = [DeviceConfig(path=kernel.path(f"0000:0{number}:00.0"), id=f"h{number}") for number in range(2)]
    async with VM(config("P", on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()

        async def resets() -> None:
            for _ in range(4):
                await asyncio.sleep(dice.random() * 0.2)
                if vm._power.machine is not None:
                    vm._power.machine.bus.write(Space.PIO, 0x600, b"\x01")

        async with asyncio.timeout(HANGS):
            await asyncio.gather(
                resets(), *(come_and_go(vm, device, random.Random(dice.random())) for device in devices)
            )
        assert kernel.at_rest
        assert not vm.config.devices
