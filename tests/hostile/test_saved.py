"""Whatever a driver has done to its device, its guest can be saved, and finds the device as it left it where it goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.hostile.case import Case
from tests.hostile.cases import CASES, QUICK
from tests.hostile.rig import simulated_rig


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.id, marks=[] if case.id in QUICK else [pytest.mark.thorough]) for case in CASES],
)
async def test_a_guest_is_saved_whose_driver(case: Case, tmp_path: Path) -> None:
    async with asyncio.timeout(60), simulated_rig(case.target, tmp_path) as (rig, _errors):
        await case.does(rig)
        await rig.move()  # in the midst of what was asked for
        await rig.recovers()
