from __future__ import annotations

import asyncio

import pytest

from aiovmm.console.race import first


async def test_the_first_to_end_ends_the_others() -> None:
    ended: list[str] = []

    async def slow() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("slow")
        return "never"

    async def quick() -> str:
        return "quick"

    assert await first(slow(), quick()) == "quick"
    assert ended == ["slow"]


async def test_an_error_is_a_result_too() -> None:
    async def fail() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await first(asyncio.sleep(3600), fail())
    assert len(asyncio.all_tasks()) == 1


async def test_cancelling_cancels_all() -> None:
    task = asyncio.create_task(first(asyncio.sleep(3600), asyncio.sleep(3600)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(asyncio.all_tasks()) == 1
