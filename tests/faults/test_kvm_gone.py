"""/dev/kvm goes, as when its node is taken away. Guests that run go on and reset, and others come, since the process has it open
as long as there is one; the next after the last is refused, and once it is back starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a mount namespace"),
]
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, subprocess
import uvloop
from aiovmm import VM, EventKind, RebootPolicy
from aiovmm.errors import HostError
from tests.vm.guest import config, counts_on, event

async def starts():
    async with VM(config("x")) as new:
        await new.start()
        await counts_on(new)

async def main():
    async with VM(config("x")) as runs, VM(config("er", on_reboot=RebootPolicy.RESTART)) as resets:
        await runs.start()
        await resets.start()
        subprocess.run(["mount", "-t", "tmpfs", "none", "/dev"], check=True)
        await starts()
        resets.serial.write(b"q")
        await event(resets, EventKind.REBOOTED)
        await counts_on(runs)
    for _ in range(2):
        try:
            await starts()
        except HostError as exc:
            print(exc)
    subprocess.run(["umount", "/dev"], check=True)
    await starts()
    print("done")

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


def test_it_is_gone_and_back() -> None:
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, last = done.stdout.splitlines()
    assert first == second
    assert "/dev/kvm" in first
    assert "modprobe" in first
    assert last == "done"
