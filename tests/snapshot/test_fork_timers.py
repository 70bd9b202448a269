"""Local APICs' timers of several processors go on in forks, and in forks of these: deadlines, one shots, periods."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from aiovmm import VM
from aiovmm.machine.architecture import board_of_host
from tests.vm.guest import config, counts_on, until

pytestmark = [
    pytest.mark.usefixtures("kvm_there"),
    pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers"),
]

TICKS, APART, KINDS = 0x61000, 16, 3  # tests/guests/timers.S


def ticks(vm: VM) -> list[int]:
    return [int.from_bytes(vm.machine.memory.read(TICKS + APART * n, 2), "little") for n in range(KINDS)]


async def all_tick(vm: VM) -> None:
    seen = ticks(vm)
    await until(lambda: all((now - then) & 0xFFFF >= 3 for now, then in zip(ticks(vm), seen, strict=True)))
    await counts_on(vm)


async def test_timers_go_on_in_forks() -> None:
    async with VM(config("", cpus=1 + KINDS, kernel="timers")) as vm:
        await vm.start()
        await all_tick(vm)
        template = await vm.freeze()
    async with template, AsyncExitStack() as stack:
        children = [await stack.enter_async_context(template.fork()) for _ in range(2)]
        for child in children:
            await child.resume()
        await asyncio.gather(*(all_tick(child) for child in children))
        async with await children[0].freeze() as second, second.fork() as grandchild:
            await grandchild.resume()
            await all_tick(grandchild)
            await grandchild.pause()
            await grandchild.resume()
            await all_tick(grandchild)
