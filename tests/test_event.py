"""What asyncio.Event does, ours does: whatever is done with both, the same tasks go on in the same order."""

from __future__ import annotations

import asyncio
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.runtime.event import Event

STEPS = st.lists(st.sampled_from(["wait", "set", "clear", "turn", "cancel", "both"]), max_size=30)


async def carried_out(event: Event | asyncio.Event, steps: list[str]) -> list[object]:
    """What there is to see of it after each step, and at the end."""
    seen: list[object] = []
    tasks: list[asyncio.Task[None]] = []

    async def wait(number: int) -> None:
        try:
            await event.wait()
        except asyncio.CancelledError:
            seen.append((number, "cancelled"))
            raise
        seen.append((number, event.is_set()))

    for step in steps:
        if step == "wait":
            tasks.append(asyncio.create_task(wait(len(tasks))))
        elif step == "cancel" and tasks:
            tasks[len(seen) % len(tasks)].cancel()
        elif step == "both":
            event.set()
            event.clear()
        elif step == "turn":
            await asyncio.sleep(0)
        elif step in ("set", "clear"):
            getattr(event, step)()
        seen.append(event.is_set())
    await asyncio.sleep(0.001)
    seen.append([task.done() for task in tasks])
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return seen


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_it_does_what_the_librarys_does(steps: list[str]) -> None:
    async def both() -> None:
        assert await carried_out(Event(), steps) == await carried_out(asyncio.Event(), steps)

    asyncio.run(both())


def test_one_that_nobody_waits_for_takes_next_to_nothing() -> None:
    event = Event()
    assert not hasattr(event, "__dict__")
    assert sys.getsizeof(event) <= 64
