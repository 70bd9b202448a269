"""Sixteen Debian guests in one process work on all their devices while bare-metal neighbours flood the loop; one after another is
killed and replaced."""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import pytest

from aiovmm import VM
from benchmarks.fairness import KINDS, begin, neighbour
from tests.system.conftest import Guests
from tests.system.guest import BOOT, prompt
from tests.system.life import VSOCK_PORT, Received, configured, done, initramfs, listen, more, numbers, work
from tests.system.traffic import sink
from tests.vm.guest import counts_on
from tests.vm.remains import Remains

COUNT = 16
ROUNDS = int(os.environ.get("AIOVMM_ROUNDS") or 30)
AT_ONCE = 2  # that boot: what a guest waits for has a limit
PAUSE = 3.0  # seconds, in which others have the emulated processors
KIB = 64  # of each of a disk's parts between them: with 1,024 each has its turn once in minutes


class Worker:
    """One of them, from its boot until it is killed; its TCP connection and its console are without a gap."""

    def __init__(self, guests: Guests, image: Path, number: int) -> None:
        disk = image.with_name(f"disk{number}")
        self._number = number
        self._vm = VM(configured(guests, "6.1", image, disk, subnet=number, memory=128, name=f"worker{number}"))
        self._received = Received()
        self._console = bytearray()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            vm = await stack.enter_async_context(self._vm)
            self._listening = asyncio.create_task(listen(vm, self._console))
            await stack.enter_async_context(await vm.vsock.listen(VSOCK_PORT, sink))
            server = await asyncio.start_server(self._received.serve, "0.0.0.0", 0)
            await stack.enter_async_context(server)
            stack.callback(self._received.close)
            await vm.start()
            await prompt(vm, timeout=AT_ONCE * BOOT)
            await work(vm, server.sockets[0].getsockname()[1], self._number, PAUSE, KIB)
            self._done = await more(vm, await done(vm))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()
        await self._listening

    async def goes_on(self) -> None:
        """Each of its devices."""
        on_the_wire = asyncio.create_task(self._received.goes_on())
        self._done = await more(self._vm, self._done)
        await on_the_wire

    async def kill(self) -> None:
        await self._vm.kill()
        await self.__aexit__()
        counted = numbers(bytes(self._console))
        assert counted == list(range(1, len(counted) + 1))


@pytest.mark.timeout(3600)
async def test_one_is_killed_and_replaced_and_the_others_work_on(guests: Guests, folder: Path) -> None:
    """What a survivor has written and sent is checked at both ends, and each device of each goes on in each round."""
    chance = random.Random(ROUNDS)
    image = initramfs(guests, "6.1", folder)
    before = await Remains.once_loop_has_streams()
    booting = asyncio.Semaphore(AT_ONCE)

    async with AsyncExitStack() as stack:

        async def begun(number: int) -> Worker:
            async with booting:
                return await stack.enter_async_context(Worker(guests, image, number))

        workers = dict(enumerate(await asyncio.gather(*map(begun, range(COUNT)))))
        neighbours = [await stack.enter_async_context(VM(neighbour(does, 0))) for does in KINDS.values()]
        for vm, does in zip(neighbours, KINDS.values(), strict=True):
            await begin(vm, does)
        for round_ in range(ROUNDS):
            began = time.monotonic()
            victim = chance.randrange(COUNT)
            going_on = asyncio.gather(*(worker.goes_on() for number, worker in workers.items() if number != victim))
            await asyncio.sleep(chance.random())  # it is in the middle of anything
            await workers[victim].kill()
            await going_on
            workers[victim] = await begun(victim)
            await asyncio.gather(*(counts_on(vm) for vm in neighbours))
            print(f"round {round_}: worker{victim} is replaced after {time.monotonic() - began:.1f} s")
        for worker in workers.values():
            await worker.kill()
    await before.check()
