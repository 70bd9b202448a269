"""Small devices, zones, NUMA nodes and an identity go with a guest that is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, MemoryConfig, PlatformConfig, PvpanicConfig, RtcConfig, SnapshotError, WatchdogConfig
from aiovmm.config.options import parse_memory_zone, parse_numa
from aiovmm.devices.virtio.rtc import RtcDevice
from aiovmm.devices.virtio.watchdog import WatchdogDevice
from aiovmm.machine.pvpanic import PvpanicFunction
from tests.vm.guest import config, counts_on


def pvpanic_of(vm: VM) -> PvpanicFunction:
    functions = vm.machine.pci.root.segments[0].functions.values()
    return next(function for function in functions if isinstance(function, PvpanicFunction))


async def test_they_are_as_they_were(tmp_path: Path) -> None:
    made = replace(
        config("s"),
        memory=MemoryConfig(0),
        memory_zones=(parse_memory_zone("id=a,size=2M"), parse_memory_zone("id=b,size=2M")),
        numa=(parse_numa("guest_numa_id=0,memory_zones=[a,b]"),),
        platform=PlatformConfig(system_serial_number="s1"),
        watchdog=WatchdogConfig(),
        pvpanic=PvpanicConfig(),
        rtc=RtcConfig(),
    )
    async with VM(made) as vm:
        await vm.start()
        await counts_on(vm)
        pvpanic_of(vm).register.write(0, b"\x01")
        vm.device("watchdog", WatchdogDevice).load({"left": 5})
        await vm.snapshot(tmp_path / "saved")
    async with VM.restore(tmp_path / "saved") as vm:
        assert vm.config.memory_zones == made.memory_zones
        assert vm.config.numa == made.numa
        assert vm.config.platform == made.platform
        assert pvpanic_of(vm).register.save() == {"told": 1}
        assert vm.device("watchdog", WatchdogDevice).save() == {"left": 5}
        assert vm.device("rtc", RtcDevice).save() == {}
        assert b"s1\0" in vm.machine.memory.read(0xF4000, 0x1000)


def test_state_of_a_clock_that_keeps_none_is_refused() -> None:
    with pytest.raises(SnapshotError, match="rtc"):
        RtcDevice().load({"x": 1})
