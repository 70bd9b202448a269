"""Sixteen Debian guests in one process use all their devices while bare-metal neighbours flood the loop; one after another is
killed and replaced.

What each does in a round is asked of it, and five do it at once, at the end all: guests that worked without end, or all sixteen
in each round, would have so little of the nested host's processors that none got anywhere.
"""

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
from tests.system.guest import BOOT, limit, prompt, shell
from tests.system.life import FIO, VSOCK_PORT, configured, host_and_guest, initramfs, listen, numbers
from tests.system.traffic import exchange, sink
from tests.vm.guest import counts_on
from tests.vm.remains import Remains

COUNT = 16
ROUNDS = int(os.environ.get("AIOVMM_ROUNDS") or 30)
AT_ONCE = 2  # that boot: what a guest waits for has a limit
AT_WORK = 5  # in a round, when one is killed; the others are idle
TURN = 300.0  # seconds for a command, when all have one


class Worker:
    """One of them, from its boot until it is killed."""

    def __init__(self, guests: Guests, image: Path, number: int) -> None:
        disk = image.with_name(f"disk{number}")
        self._own, self._address = host_and_guest(number)
        self._vm = VM(configured(guests, "6.1", image, disk, subnet=number, memory=128, name=f"worker{number}"))
        self._console = bytearray()
        self._turns = 0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            vm = await stack.enter_async_context(self._vm)
            self._listening = asyncio.create_task(listen(vm, self._console))
            await stack.enter_async_context(await vm.vsock.listen(VSOCK_PORT, sink))
            await vm.start()
            await prompt(vm, timeout=AT_ONCE * BOOT)
            await self._run(f"ip address add {self._address}/24 dev eth0; ip link set eth0 up")
            await self.turn()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()
        await self._listening

    async def turn(self) -> None:
        """Each of its devices is used once, and what came of it is checked."""
        self._turns += 1
        await self._run(f"{FIO.replace('1M', '64k', 1)} >/tmp/fio 2>&1 || {{ cat /tmp/fio; false; }}")
        size, crc, counted, its, *_ = (await self._run(f"vsock connect 2 {VSOCK_PORT} source 65536")).split()
        assert (size, crc) == (counted, its)
        await exchange(self._run, self._own, random.randbytes(1 << 16))
        assert int(await self._run("head -c 64 /dev/hwrng | wc -c")) == 64
        await self._run(f"echo n{self._turns} >/dev/hvc0")

    async def _run(self, command: str) -> str:
        return await shell(self._vm, command, timeout=limit(TURN))

    async def kill(self) -> None:
        """Whatever it is at."""
        await self._vm.kill()
        await self.__aexit__()
        counted = numbers(bytes(self._console))
        assert counted == list(range(1, len(counted) + 1))
        assert self._turns - len(counted) in (0, 1), "the last one may be cut"


@pytest.mark.timeout(3600)
async def test_one_is_killed_and_replaced_and_the_others_work_on(guests: Guests, folder: Path) -> None:
    """What a survivor has written and sent is checked at both ends, with each device of each, in each round."""
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
            at_work = chance.sample(range(COUNT), AT_WORK)
            victim = at_work[0]
            turns = {number: asyncio.create_task(workers[number].turn()) for number in at_work}
            await asyncio.sleep(chance.random())  # it is in the middle of anything
            turns[victim].cancel()
            await asyncio.wait([turns.pop(victim)])
            await workers[victim].kill()
            await asyncio.gather(*turns.values())
            workers[victim] = await begun(victim)
            await asyncio.gather(*(counts_on(vm) for vm in neighbours))
            print(f"round {round_}: worker{victim} is replaced after {time.monotonic() - began:.1f} s")
        await asyncio.gather(*(worker.turn() for worker in workers.values()))
        for worker in workers.values():
            await worker.kill()
    await before.check()
