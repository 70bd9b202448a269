"""Programs that have had guests end as others do, whatever they are made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANGS

pytestmark = pytest.mark.kvm

PROGRAM = """
import asyncio

import aiovmm
from tests.vm.guest import config, counts_on


async def start(vm):
    await begin(vm)


begin, aiovmm.VM.start = aiovmm.VM.start, start


async def main():
    async with aiovmm.VM(config("x")) as vm:
        await vm.start()
        await counts_on(vm)


asyncio.run(main())
"""


def test_one_whose_modules_are_garbage_at_its_end_ends_well() -> None:
    """As they are where a function of the program's own stands in a class of ours: it ended with SIGSEGV, after all was done."""
    top = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=top, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
