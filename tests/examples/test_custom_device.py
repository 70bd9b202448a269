"""The example's device against a driver, without a guest: how an embedder tests a device."""

from __future__ import annotations

from aiovmm.testing import Harness
from examples.custom_device import Dice


async def test_a_request_is_filled_with_rolls() -> None:
    async with Harness(Dice(seed=1)) as h:
        rolls = await h.request(0, [], [100, 20])
        assert len(rolls) == 120
        assert set(rolls) == set(b"123456")


async def test_a_large_request_is_cut_to_what_we_give() -> None:
    async with Harness(Dice()) as h:
        assert len(await h.request(0, [], [1 << 20])) == 4096


async def test_a_driver_that_comes_back_is_served() -> None:
    async with Harness(Dice()) as h:
        assert len(await h.request(0, [], [16])) == 16
        await h.reset()
        await h.start()
        assert len(await h.request(0, [], [16])) == 16
