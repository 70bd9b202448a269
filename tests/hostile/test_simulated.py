"""Every case, without KVM: the driver is on the event loop of the devices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aiovmm.errors import AiovmmError
from tests.hostile.case import Case
from tests.hostile.cases import CASES, judge
from tests.hostile.rig import simulated_rig


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_a_driver_that(case: Case, tmp_path: Path) -> None:
    async with asyncio.timeout(60), simulated_rig(case.target, tmp_path) as (rig, errors):
        await judge(case, rig)
    assert [
        error for error in errors if not isinstance(error, AiovmmError)
    ] == []  # which would be told as a bug of the device


def test_there_are_as_many_as_are_promised_and_of_every_kind() -> None:
    assert len(CASES) >= 600
    assert len({case.id for case in CASES}) == len(CASES)
    assert len({case.category for case in CASES}) >= 10
