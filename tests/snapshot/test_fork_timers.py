"""Local APICs' timers of several processors go on in forks, and in forks of these: deadlines, one shots, periods."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from aiovmm import VM
from aiovmm.kvm.x86_64 import msrs
from aiovmm.machine.architecture import board_of_host
from tests.vm.guest import config, counts_on, until

pytestmark = [
    pytest.mark.usefixtures("kvm_there"),
    pytest.mark.skipif(not board_of_host().has_ports, reason="a PC's registers"),
]

TSC, DEADLINE = 0x10, 0x6E0
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


async def test_counters_of_all_processors_are_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long each takes: they are read in a row after everything else, and set in a row, deadlines after counters."""
    read, put = list[list[int]](), list[list[int]]()
    get, try_set = msrs.get, msrs.try_set

    def note_read(fd: int, indices: list[int]) -> dict[int, int]:
        read.append(indices)
        return get(fd, indices)

    def note_put(fd: int, values: Sequence[tuple[int, int]]) -> int:
        put.append([index for index, _ in values])
        return try_set(fd, values)

    async with VM(config("", cpus=3, kernel="timers")) as vm:
        await vm.start()
        await counts_on(vm)
        monkeypatch.setattr(msrs, "get", note_read)
        template = await vm.freeze()
    assert read[-3:] == [[TSC]] * 3
    monkeypatch.setattr(msrs, "get", get)
    monkeypatch.setattr(msrs, "try_set", note_put)
    async with template, template.fork():
        assert put[-6:] == [*[[TSC]] * 3, *[[DEADLINE]] * 3]
        assert not any(index in (TSC, DEADLINE) for indices in put[:-6] for index in indices)
