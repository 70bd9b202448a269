"""Two tasks that compute without end in a guest, and whether both still have their turns after it has stood still."""

from __future__ import annotations

import asyncio
import time

from aiovmm import VM
from tests.system.guest import shell

GAP = 20.0  # seconds that it stands still


async def make_busy(vm: VM) -> None:
    await shell(vm, "(while :; do :; done) & A=$!; (while :; do :; done) & B=$!; true")


async def both_go_on(vm: VM, keeps_time: bool) -> None:
    """And its shell, in less than the gap. `keeps_time`: its wall clock shows no gap."""
    began = time.monotonic()
    now = before = await _running_times(vm)
    assert time.monotonic() - began < GAP
    async with asyncio.timeout(GAP):
        while any(then == later for then, later in zip(before, now, strict=True)):
            now = await _running_times(vm)
    if keeps_time:
        assert abs(int(await shell(vm, "date +%s")) - time.time()) < 3


async def _running_times(vm: VM) -> list[int]:
    return [int(line.split()[13]) for line in (await shell(vm, "cat /proc/$A/stat /proc/$B/stat")).splitlines()]
