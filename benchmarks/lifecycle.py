"""How long a VM's transitions take, and what a neighbour's exits cost while other VMs flood the event loop.

Bare-metal guests (tests/guests/kernel.S), which run on any KVM. The machine's load shows in the worst cases.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack

import uvloop

from aiovmm import VM, EventKind, RebootPolicy
from benchmarks.harness import Options, Result
from tests.vm.guest import config, counter, counts_on, event

NEEDS_KVM = True
STATES = {
    "spinning": "s",
    "halted": "i",
    "printing": "w",
    "asking": "x",
    "exiting": "n",
}


async def timed(work: Awaitable[object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def creations(rounds: int) -> dict[str, list[float]]:
    """Enter, start, leave."""
    enter, start, leave = [], [], []
    for _ in range(rounds):
        vm = VM(config("s"))
        enter.append(await timed(vm.__aenter__()))
        start.append(await timed(vm.start()))
        await counts_on(vm)
        leave.append(await timed(vm.aclose()))
    return {"create": enter, "start": start, "close while running": leave}


async def stops(rounds: int, does: str, cpus: int, before: Callable[[VM], Awaitable[object]]) -> list[float]:
    """Seconds of kill() in some state."""
    times = []
    for _ in range(rounds):
        async with VM(config(does, cpus)) as vm:
            await before(vm)
            times.append(await timed(vm.kill()))
    return times


async def running(vm: VM) -> None:
    """Started, and some way on."""
    await vm.start()
    for _ in range(3):
        await asyncio.sleep(0.0005)


async def paused(vm: VM) -> None:
    """Started and paused."""
    await running(vm)
    await vm.pause()


async def created(vm: VM) -> None:
    """Never started."""


async def pauses(rounds: int) -> dict[str, list[float]]:
    """Pause and resume."""
    down, up = [], []
    async with VM(config("s", 4)) as vm:
        await vm.start()
        for _ in range(rounds):
            await counts_on(vm)
            down.append(await timed(vm.pause()))
            up.append(await timed(vm.resume()))
    return {"pause, 4 vCPUs": down, "resume, 4 vCPUs": up}


async def resets(rounds: int) -> list[float]:
    """Seconds of each, of a guest that does nothing else: the pace is bounded."""
    async with VM(config("r", on_reboot=RebootPolicy.RESTART)) as vm:
        began = time.perf_counter()
        await vm.start()
        await event(vm, EventKind.REBOOTED, rounds, 60)
        return [(time.perf_counter() - began) / rounds]


async def neighbour(seconds: float, floods: int, does: str) -> list[float]:
    """Seconds of an exit that waits for the loop, of one VM beside others that flood it."""
    async with AsyncExitStack() as stack:
        asking = await stack.enter_async_context(VM(config("x")))
        for _ in range(floods):
            await (await stack.enter_async_context(VM(config(does)))).start()
        await asking.start()
        await counts_on(asking)
        seen = counter(asking)
        await asyncio.sleep(seconds)
        count = counter(asking) - seen
    return [seconds / max(count, 1)]


FLOODS = {"printing": "w", "asking": "x", "exiting": "n"}


def run(options: Options) -> Iterator[Result]:
    """A row for each transition in milliseconds, and for each kind of neighbours in microseconds an exit."""
    rounds = options.pick(10 * options.rounds, 2)
    yield from rows(uvloop.run(creations(rounds)), 1e3, "ms")
    for name, does in STATES.items():
        yield from rows({f"kill while {name}": uvloop.run(stops(rounds, does, 1, running))}, 1e3, "ms")
    yield from rows({"kill while spinning, 4 vCPUs": uvloop.run(stops(rounds, "s", 4, running))}, 1e3, "ms")
    yield from rows({"kill while paused": uvloop.run(stops(rounds, "s", 1, paused))}, 1e3, "ms")
    yield from rows({"kill before start": uvloop.run(stops(rounds, "s", 1, created))}, 1e3, "ms")
    yield from rows(uvloop.run(pauses(rounds)), 1e3, "ms")
    yield from rows({"reset, as fast as it can": uvloop.run(resets(options.pick(20, 2)))}, 1e3, "ms")
    for number in options.pick((0, 1, 4, 16), (0, 1)):
        for name, does in FLOODS.items() if number else [("nobody", "")]:
            name = f"a waiting exit, beside {number} {name}" if number else "a waiting exit, alone"
            yield from rows({name: uvloop.run(neighbour(options.pick(1.0, 0.1), number, does))}, 1e6, "us")


def rows(samples: Mapping[str, list[float]], scale: float, unit: str) -> Iterator[Result]:
    """Results without a peer, of seconds."""
    for name, values in samples.items():
        print(name, file=sys.stderr)
        yield Result(name, unit, samples={"aiovmm": [scale * value for value in values]})
