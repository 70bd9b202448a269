"""kvm-clock does not show a guest how long it stood still: Linux would take that for the running time of a task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiovmm import VM
from aiovmm.kvm.x86_64 import clock
from aiovmm.kvm.x86_64.clock import get_clock
from aiovmm.kvm.x86_64.cpuid import CpuidEntry, pack
from aiovmm.machine.x86_64 import saved
from tests.limits import HANGS
from tests.vm.guest import config, counts_on

pytestmark = [pytest.mark.usefixtures("kvm_there"), pytest.mark.kvm]

APART = 0.3  # seconds that the guest stands still
STILL = 0.25  # less than which it has run meanwhile, as busy as the host may be: what it runs is measured


@pytest.fixture(params=[True, False], ids=["stands", "goes on"])
def stands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether it stands still with the guest."""
    for module in (clock, saved):
        monkeypatch.setattr(module, "stands_still", lambda _cpuid, states: bool(list(states)) and request.param)
    return bool(request.param)


def shown(vm: VM) -> int:
    """By kvm-clock to its guest, in nanoseconds."""
    return get_clock(vm.machine.kvm_vm)


@asynccontextmanager
async def stood() -> AsyncIterator[tuple[VM, int]]:
    """A guest that has stood still for a while, and what it was shown before."""
    async with asyncio.timeout(HANGS), VM(config("s")) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.pause()
        before = shown(vm)
        await asyncio.sleep(APART)
        yield vm, before


async def test_a_pause_is_none_of_the_guests_time(stands: bool) -> None:
    async with stood() as (vm, before):
        vm.machine.board.go_on()  # the first thing that `resume` does
        passed = (shown(vm) - before) / 1e9
        assert (passed < STILL) == stands, passed
        await vm.resume()
        await counts_on(vm)


@pytest.mark.parametrize("restored_early", [True, False])
async def test_nor_is_the_time_in_a_snapshot(stands: bool, restored_early: bool, tmp_path: Path) -> None:
    async with stood() as (vm, before):
        await vm.snapshot(tmp_path / "s")
    if not restored_early:
        await asyncio.sleep(APART)
    async with asyncio.timeout(HANGS), VM.restore(tmp_path / "s") as again:
        if restored_early:
            await asyncio.sleep(APART)
        again.machine.board.go_on()
        passed = (shown(again) - before) / 1e9
        assert (passed < STILL) == stands, passed
        assert stands or passed >= 2 * APART
        await again.resume()
        await counts_on(again)


@pytest.mark.parametrize("edx", [0, 0x100])
@pytest.mark.parametrize(("states", "at_work"), [((3, 1), False), ((3, 0), True), ((0,), True), ((2, 3), False)])
def test_when_it_stands_still(edx: int, states: tuple[int, ...], at_work: bool) -> None:
    packed = pack([CpuidEntry(0x80000007, 0, 0, 0, 0, 0, edx)])
    assert clock.stands_still(packed, states) == (at_work or bool(edx))


@pytest.mark.parametrize(
    ("leaf", "edx", "expected"), [(0x80000007, 0x100, True), (0x80000007, 0xFF, False), (7, 0x100, False)]
)
def test_which_counters_are_invariant_the_guests_own_cpuid_says(leaf: int, edx: int, expected: bool) -> None:
    entries = [CpuidEntry(1, 0, 0, 0, 0, 0, 0x100), CpuidEntry(leaf, 0, 0, 0, 0, 0, edx)]
    assert clock.has_invariant_counters(pack(entries)) == expected
