"""Whose core cookie a vCPU's thread gets: that of a thread which is there. The number of one that has ended may be another's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kvm, pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")]

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, os
from dataclasses import replace
from aiovmm import VM, CpusConfig
from aiovmm.kvm.vcpu import ALONE
from tests.vm.guest import config

async def main():
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.environ["COOKIES"] = str(write)

    async def started(vcpu, core):
        vcpu.start(core=core)
        return os.read(read, 100).decode().strip()

    async def ended(vcpu):
        vcpu.stop()
        await vcpu.join()

    async with VM(replace(config("s"), cpus=CpusConfig(3))) as vm:
        first, second, third = vm.machine.vcpus
        for vcpu in vm.machine.vcpus:
            await vcpu.pause()
        assert await started(first, ALONE) == "own"
        core = first.core
        assert await started(second, core) == str(core)
        first.resume()
        await ended(first)
        assert first.core == 0
        assert await started(third, core) == "own", "somebody else may have its number"
        third.resume()
        await ended(third)
        assert await started(third, os.getpid()) == "own", "which is no vCPU's"
        for vcpu in (second, third):
            vcpu.resume()
            await ended(vcpu)

asyncio.run(main())
print("done")
"""


def test_a_thread_that_has_ended_gives_no_cookie(tmp_path: Path) -> None:
    source, library = Path(__file__).with_name("cookies.c"), tmp_path / "libcookies.so"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(source), "-ldl"], check=True, timeout=60)
    preload = " ".join(filter(None, (os.environ.get("LD_PRELOAD"), str(library))))
    environment = {**os.environ, "LD_PRELOAD": preload}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "done\n", done.stderr
