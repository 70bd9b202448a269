"""Time-outs say what was waited for."""

from __future__ import annotations

import asyncio

import pytest

from aiovmm.runtime.timeouts import time_limit
from aiovmm.testing import Harness
from examples.custom_device import Dice


async def test_it_names_what_did_not_come() -> None:
    with pytest.raises(TimeoutError, match=r"^a letter: not within 0.01 s$"):
        async with time_limit(0.01, "a letter"):
            await asyncio.sleep(60)


async def test_one_from_within_passes_as_it_is() -> None:
    with pytest.raises(TimeoutError, match=r"^another$"):
        async with time_limit(60, "a letter"):
            raise TimeoutError("another")


async def test_no_limit() -> None:
    async with time_limit(None, "a letter"):
        await asyncio.sleep(0)


async def test_a_driver_that_waits_in_vain() -> None:
    async with Harness(Dice()) as harness:
        with pytest.raises(TimeoutError, match="NEEDS_RESET"):
            await harness.broken(timeout=0.01)
        with pytest.raises(TimeoutError, match="1 chains back"):
            await harness.queues[0].used(timeout=0.01)
