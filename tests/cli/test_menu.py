"""The menu of a person who has detached."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aiovmm.cli.menu import menu


async def test_cancelled_it_leaves_nobody_who_reads_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    master, slave = os.openpty()
    try:
        ended = asyncio.Event()
        vm, terminal = SimpleNamespace(wait=ended.wait), SimpleNamespace(input_fd=slave, output_is_terminal=True)
        asking = asyncio.create_task(menu(cast("Any", vm), cast("Any", terminal)))
        while "attach" not in capsys.readouterr().out:  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
    finally:
        os.close(master)
        os.close(slave)
