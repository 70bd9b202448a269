"""How long a VM's transitions take, and what a neighbour's exits cost while other VMs flood the event loop.

    python -m benchmarks.lifecycle [--rounds N] [--loop uvloop|asyncio]

Bare-metal guests (tests/guests/kernel.S), which run on any KVM. Medians and worst cases; the machine's load shows in the latter.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import uvloop

from aiovmm import VM, EventKind, RebootPolicy
from tests.vm.guest import config, counter, counts_on, event

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


def show(what: str, times: list[float]) -> None:
    """One line."""
    print(f"{what:28} median {1e3 * statistics.median(times):8.3f} ms   worst {1e3 * max(times):8.3f} ms")


async def creations(rounds: int) -> None:
    """Enter, start, leave."""
    enter, start, leave = [], [], []
    for _ in range(rounds):
        vm = VM(config("s"))
        enter.append(await timed(vm.__aenter__()))
        start.append(await timed(vm.start()))
        await counts_on(vm)
        leave.append(await timed(vm.aclose()))
    show("create", enter)
    show("start", start)
    show("close while running", leave)


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


async def pauses(rounds: int) -> None:
    """Pause and resume."""
    down, up = [], []
    async with VM(config("s", 4)) as vm:
        await vm.start()
        for _ in range(rounds):
            await counts_on(vm)
            down.append(await timed(vm.pause()))
            up.append(await timed(vm.resume()))
    show("pause, 4 vCPUs", down)
    show("resume, 4 vCPUs", up)


async def resets(rounds: int) -> None:
    """A guest that does nothing else: the pace is bounded."""
    async with VM(config("r", on_reboot=RebootPolicy.RESTART)) as vm:
        began = time.perf_counter()
        await vm.start()
        await event(vm, EventKind.REBOOTED, rounds, 60)
        print(f"{'resets, as fast as it can':28} {rounds / (time.perf_counter() - began):.1f} a second")


async def neighbour(seconds: float, floods: int, does: str) -> None:
    """Exits a second that wait for the loop, of one VM beside others that flood it."""
    async with AsyncExitStack() as stack:
        asking = await stack.enter_async_context(VM(config("x")))
        for _ in range(floods):
            await (await stack.enter_async_context(VM(config(does)))).start()
        await asking.start()
        await counts_on(asking)
        seen = counter(asking)
        await asyncio.sleep(seconds)
        count = counter(asking) - seen
    print(f"one that asks, beside {floods:2} of {does!r}: {1e6 * seconds / max(count, 1):8.1f} us an exit")


async def run(rounds: int) -> None:
    """Everything."""
    await creations(rounds)
    for name, does in STATES.items():
        show(f"kill while {name}", await stops(rounds, does, 1, running))
    show("kill while spinning, 4 vCPUs", await stops(rounds, "s", 4, running))
    show("kill while paused", await stops(rounds, "s", 1, paused))
    show("kill before start", await stops(rounds, "s", 1, created))
    await pauses(rounds)
    await resets(20)
    for floods, does in ((0, "w"), (1, "w"), (1, "x"), (1, "n"), (4, "w"), (4, "x"), (16, "w"), (16, "x")):
        await neighbour(1.0, floods, does)


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    args = parser.parse_args()
    runner = uvloop.run if args.loop == "uvloop" else asyncio.run
    runner(run(args.rounds))


if __name__ == "__main__":
    main()
