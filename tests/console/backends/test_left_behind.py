"""A place that was entered by hand and never left, when the loop ends."""

from __future__ import annotations

import asyncio
import os
import warnings
from pathlib import Path

import pytest

from aiovmm import Console, ConsoleConfig, ConsoleMode
from aiovmm.console.backends import open_backend


@pytest.mark.parametrize("mode", [ConsoleMode.SOCKET, ConsoleMode.PTY, ConsoleMode.FILE])
def test_it_is_let_go_with_a_warning(mode: ConsoleMode, tmp_path: Path) -> None:
    path = None if mode is ConsoleMode.PTY else tmp_path / "place"

    async def main() -> None:
        await open_backend(ConsoleConfig(mode, path), Console(name="left")).__aenter__()

    before = os.listdir("/proc/self/fd")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(main())
    assert [str(w.message) for w in told if "the console left at" in str(w.message)]
    assert os.listdir("/proc/self/fd") == before
    if mode is ConsoleMode.SOCKET:
        assert not os.path.lexists(tmp_path / "place")


def test_who_leaves_it_hears_nothing(tmp_path: Path) -> None:
    async def serve(entered: asyncio.Event) -> None:
        async with open_backend(ConsoleConfig(ConsoleMode.SOCKET, tmp_path / "place"), Console()):
            entered.set()
            await asyncio.Event().wait()

    async def main() -> asyncio.Task[None]:
        entered = asyncio.Event()
        task = asyncio.create_task(serve(entered))
        await entered.wait()
        return task

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert asyncio.run(main()).cancelled()
    assert not told
