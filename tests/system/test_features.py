"""What an arm64 guest's processor has because KVM was asked for it: SVE and the performance counters, used by a program."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from aiovmm import VM
from aiovmm.image import build_initramfs
from tests.system.conftest import GUESTS, Guests
from tests.system.guest import prompt, shell
from tests.system.programs import program

LOOKED_FOR = {"sve", "paca", "pacg", "asimd", "atomics"}
"""As Linux names them; the first three KVM hides from a vCPU for which they were not asked for (KVM_ARM_VCPU_INIT)."""


def features(cpuinfo: str) -> set[str]:
    line = next(line for line in cpuinfo.splitlines() if line.startswith("Features"))
    return LOOKED_FOR & set(line.split())


def of_the_host() -> set[str]:
    return features(Path("/proc/cpuinfo").read_text())


def tool() -> Path:
    path = program("features")
    assert path is not None, "tests/system/programs are compiled where the tests start"
    return path


def told(said: str) -> dict[str, int]:
    """What the program says."""
    return {name: int(number) for name, number in (line.split() for line in said.splitlines())}


def told_here() -> dict[str, int]:
    return told(subprocess.check_output([tool()], text=True))


def with_tool(folder: Path) -> Path:
    files = {"/bin/features": tool()}
    image = build_initramfs(busybox=GUESTS / "bin/busybox", modules=GUESTS / "6.1/modules", files=files)
    (folder / "features.cpio").write_bytes(image.data)
    return folder / "features.cpio"


async def test_a_guests_processor_has_what_the_hosts_has(guests: Guests, tmp_path: Path, host: str) -> None:
    config, here = guests.config(), told_here()
    assert ("sve" in of_the_host()) == (here["sve"] > 0) == (host != "cortex-a72")
    assert here["overflows"] > 0
    async with VM(replace(config, payload=replace(config.payload, initramfs=with_tool(tmp_path)))) as vm:
        await vm.start()
        await prompt(vm)
        assert features(await shell(vm, "cat /proc/cpuinfo")) == of_the_host()
        there = told(await shell(vm, "features"))
        assert there["sve"] == here["sve"]
        assert there["cycles"] > 1e6
        assert there["overflows"] > 0
        assert int((await shell(vm, "grep arm-pmu /proc/interrupts")).split()[1]) > 0  # by the PMU's PPI
