"""The same by a true vCPU, one machine a case, beside another guest of the process whose exits are to be served all the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiovmm import VM
from aiovmm.errors import AiovmmError, KvmError
from aiovmm.kvm import Kvm
from tests.hostile.case import Case
from tests.hostile.cases import CASES, QUICK, judge
from tests.hostile.rig import Rig, guest_rig
from tests.limits import HANGS
from tests.vm.guest import config, counter, counts_on

pytestmark = pytest.mark.kvm


PARAMS = [pytest.param(case, id=case.id, marks=[] if case.id in QUICK else [pytest.mark.thorough]) for case in CASES]


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    try:
        opened = Kvm.open()
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")
    yield opened
    opened.close()


@asynccontextmanager
async def neighbour() -> AsyncIterator[list[float]]:
    """A guest whose exits wait for the loop; how long the longest time was in which none was served."""
    longest = [0.0]

    async def look(vm: VM) -> None:
        seen, since = counter(vm), time.monotonic()
        while True:
            await asyncio.sleep(0.002)
            if (now := counter(vm)) != seen:
                seen, since = now, time.monotonic()
            longest[0] = max(longest[0], time.monotonic() - since)

    async with VM(config("x")) as vm:
        await vm.start()
        await counts_on(vm)
        looking = asyncio.create_task(look(vm))
        try:
            yield longest
            await counts_on(vm)
        finally:
            looking.cancel()


@pytest.mark.parametrize("case", PARAMS)
async def test_a_guest_whose_driver(case: Case, kvm: Kvm, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await judge(case, rig)

    async with asyncio.timeout(100), neighbour() as longest:
        errors, on_the_bus = await guest_rig(case.target, tmp_path, kvm, scenario)
    assert on_the_bus == []
    assert [error for error in errors if not isinstance(error, AiovmmError)] == []
    assert longest[0] < HANGS
