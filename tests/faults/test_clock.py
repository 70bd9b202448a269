"""The host's clock is set, far and in either direction, while guests run: deadlines are not its affair, and dates are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.library import build

pytestmark = [pytest.mark.kvm, pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")]

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, sys, time
from pathlib import Path
import uvloop
from aiovmm import VM, DiskConfig, LimitsConfig
from tests.faults.library import set_clock
from tests.vm.guest import config, counts_on

YEAR = 366 * 86400

async def main(place):
    (place / "disk").write_bytes(bytes(1 << 20))
    limits = LimitsConfig(lifetime=3600.0, idle=3600.0)
    async with VM(config("s", disks=(DiskConfig(path=place / "disk"),), limits=limits)) as vm:
        await vm.start()
        began = time.monotonic()
        for step in (3600, -7200, 200 * YEAR, -50 * YEAR, 20 * YEAR, 0):
            was = time.time()
            set_clock(step)
            assert abs(time.time() - was) > 1000
            await counts_on(vm)
            await vm.pause()
            await vm.resume()
            assert vm.status is None, vm.status
            assert 0 <= vm.stats().uptime <= time.monotonic() - began + 1
        set_clock(-YEAR)
        stopped = asyncio.ensure_future(vm.stop(timeout=0.01))
        set_clock(YEAR)
        await stopped
        print("ended", vm.status.reason.value)

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main(Path(sys.argv[1])))
"""


def test_a_clock_that_is_set_ends_nothing_and_hinders_nothing(tmp_path: Path) -> None:
    library = build(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout.split()[:1], done.returncode) == (["ended"], 0), done.stderr[-3000:]
