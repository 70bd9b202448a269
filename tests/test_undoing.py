"""What is undone when something is taken apart: the last first, each once, whatever one of them raises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from aiovmm.runtime.undoing import Undoing


class Steps:
    """Steps that note that they were taken."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def plain(self, name: str, error: BaseException | None = None) -> Callable[[], None]:
        return partial(self._take, name, error)

    def slow(self, name: str, error: BaseException | None = None) -> Callable[[], asyncio.Task[None]]:
        async def take() -> None:
            await asyncio.sleep(0)
            self._take(name, error)

        return lambda: asyncio.ensure_future(take())

    def _take(self, name: str, error: BaseException | None) -> None:
        self.taken.append(name)
        if error is not None:
            raise error


async def test_the_last_is_undone_first_and_each_once() -> None:
    steps, undoing = Steps(), Undoing()
    for step in (steps.plain("a"), steps.slow("b"), steps.plain("c")):
        undoing.push(step)
    await undoing.aclose()
    await undoing.aclose()
    assert steps.taken == ["c", "b", "a"]
    undoing.push(steps.plain("later"))
    await undoing.aclose()
    assert steps.taken[3:] == ["later"]


async def test_what_one_raises_keeps_no_other_from_being_undone() -> None:
    steps, undoing = Steps(), Undoing()
    undoing.push(steps.slow("a"))
    undoing.push(steps.plain("b", KeyError("raised last")))
    undoing.push(steps.slow("c", ValueError("raised before")))
    with pytest.raises(KeyError, match="raised last") as info:
        await undoing.aclose()
    assert repr(info.value.__context__) == "ValueError('raised before')", "it is told, too"
    assert steps.taken == ["c", "b", "a"]


def test_steps_that_do_not_wait_are_undone_without_a_loop() -> None:
    steps, undoing = Steps(), Undoing()
    undoing.push(steps.plain("a"))
    undoing.push(steps.plain("b", OSError("b")))
    with pytest.raises(OSError, match="b"):
        undoing.close()
    undoing.close()
    assert steps.taken == ["b", "a"]
