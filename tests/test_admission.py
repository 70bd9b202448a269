"""Of many that begin at once the first is done first, and nobody waits for one that is stuck."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from aiovmm.runtime import admission
from aiovmm.runtime.admission import AT_ONCE, ENDING, admitted
from tests.limits import HANGS


async def test_who_comes_first_is_done_first() -> None:
    at_work, most, done = 0, 0, []

    async def one(number: int) -> None:
        nonlocal at_work, most
        async with admitted():
            at_work += 1
            most = max(most, at_work)
            for _ in range(3):
                await asyncio.sleep(0)
            at_work -= 1
        done.append(number)

    await asyncio.gather(*(one(number) for number in range(20)))
    assert done == list(range(20))
    assert most == AT_ONCE


async def test_who_takes_long_holds_nobody_up() -> None:
    may_end, stuck = asyncio.Event(), 0

    async def one() -> None:
        nonlocal stuck
        async with admitted():
            stuck += 1
            await may_end.wait()

    tasks = [asyncio.create_task(one()) for _ in range(3 * AT_ONCE)]
    await asyncio.sleep(0)
    async with asyncio.timeout(HANGS), admitted():
        assert stuck == 3 * AT_ONCE
    may_end.set()
    await asyncio.gather(*tasks)
    assert await by_turns() == AT_ONCE, "each left once"


async def test_who_is_cancelled_gives_up_its_place() -> None:
    may_end = asyncio.Event()

    async def one() -> None:
        async with admitted():
            await may_end.wait()

    inside = [asyncio.create_task(one()) for _ in range(AT_ONCE)]
    waiting = [asyncio.create_task(one()) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    may_end.set()
    await asyncio.gather(*inside)
    waiting[1].cancel()  # let in just now, perhaps
    for task in waiting:
        with suppress(asyncio.CancelledError):
            await task
    assert await by_turns() == AT_ONCE


async def test_an_error_leaves_as_well() -> None:
    for _ in range(2 * AT_ONCE):
        with suppress(ZeroDivisionError):
            async with admitted():
                raise ZeroDivisionError
    assert await by_turns() == AT_ONCE


async def by_turns() -> int:
    """How many get in at once now."""
    inside = 0
    may_end = asyncio.Event()

    async def one() -> None:
        nonlocal inside
        async with admitted():
            inside += 1
            await may_end.wait()

    patience, admission.PATIENCE = admission.PATIENCE, 60.0
    try:
        tasks = [asyncio.create_task(one()) for _ in range(3 * AT_ONCE)]
        for _ in range(5):
            await asyncio.sleep(0)
        seen = inside
        may_end.set()
        await asyncio.gather(*tasks)
    finally:
        admission.PATIENCE = patience
    return seen


async def test_those_who_end_and_those_who_begin_do_not_wait_for_each_other() -> None:
    may_end, inside = asyncio.Event(), 0

    async def one(to_end: bool) -> None:
        nonlocal inside
        async with admitted(to_end=to_end):
            inside += 1
            await may_end.wait()

    tasks = [asyncio.create_task(one(to_end)) for to_end in (True, False) for _ in range(20)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert inside == AT_ONCE + ENDING
    may_end.set()
    await asyncio.gather(*tasks)
