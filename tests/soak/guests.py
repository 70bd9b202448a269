"""The guests of a soak, and what happens to them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from aiovmm import (
    VM,
    BalloonConfig,
    DiskConfig,
    MemoryConfig,
    PmemConfig,
    RebootPolicy,
    RngConfig,
    VMConfig,
    VMState,
    VsockConfig,
)
from aiovmm.errors import ConsoleEnded, StateError
from tests.vm.guest import config

__all__ = ["ACTIONS", "Guest"]

ROLES = {
    "echoes": "he",
    "prints": "hw",
    "asks": "hx",
    "computes": "hs",
    "floods": "hn",
    "idles": "hi",
    "resets": "hr",
    "powers off": "ho",
}
"""What a guest does, by the letters of tests/guests/kernel.S. The last two end, or begin anew, all the time."""


class Guest:
    """One place of the soak: a VM of `role` with one device of each kind, replaced whenever it has ended."""

    def __init__(self, role: str, place: Path, seed: int, done: Counter[str]) -> None:
        self.role = role
        self.random = random.Random(seed)
        self.vm: VM | None = None
        self._place = place
        self._done = done
        place.mkdir()
        (place / "disk").write_bytes(bytes(1 << 20))
        (place / "pmem").write_bytes(bytes(2 << 20))

    def config(self) -> VMConfig:
        return config(
            ROLES[self.role],
            cpus=self.random.choice((1, 1, 2)),
            memory=MemoryConfig(4 << 20, shared=self.random.random() < 0.2),
            rng=RngConfig(),
            disks=(DiskConfig(path=self._place / "disk"),),
            pmems=(PmemConfig(file=self._place / "pmem"),),
            vsock=VsockConfig(cid=3, socket=self._place / "vsock"),
            balloon=BalloonConfig(),
            name=self.role,
            on_reboot=RebootPolicy.RESTART,
        )

    async def live(self, until: asyncio.Event) -> None:
        """One VM after the other, and something happening to each."""
        while not until.is_set():
            async with VM(self.config()) as vm:
                self.vm = vm
                await vm.start()
                self._done["started"] += 1
                while vm.state is not VMState.STOPPED and not until.is_set():
                    await self._something(vm)
                self.vm = None
                assert vm.status is None or vm.status.error is None, vm.status

    async def _something(self, vm: VM) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(vm.wait(), self.random.uniform(0.01, 0.3))
            return
        name = self.random.choices(list(ACTIONS), [weight for weight, _ in ACTIONS.values()])[0]
        with suppress(StateError, ConsoleEnded):  # it has ended meanwhile
            await ACTIONS[name][1](vm, self)
            self._done[name] += 1


async def pause(vm: VM, guest: Guest) -> None:
    await vm.pause()
    await asyncio.sleep(guest.random.uniform(0, 0.05))
    await vm.resume()


async def kill(vm: VM, _guest: Guest) -> None:
    await vm.kill()


async def stop(vm: VM, _guest: Guest) -> None:
    await vm.stop(0.1)


async def close(vm: VM, _guest: Guest) -> None:
    await vm.aclose()


async def write(vm: VM, guest: Guest) -> None:
    vm.serial.write(guest.random.randbytes(guest.random.randrange(1, 4096)).replace(b"q", b"Q"))


async def read(vm: VM, _guest: Guest) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(vm.serial.read(65536), 0.05)


async def cancel_start(_vm: VM, guest: Guest) -> None:
    """A VM that is given up at a random moment of its start."""

    async def start() -> None:
        changed = guest.config()
        async with VM(changed) as vm:
            await vm.start()
            await vm.wait()

    starting = asyncio.create_task(start())
    await asyncio.sleep(guest.random.uniform(0, 0.02))
    starting.cancel()
    with suppress(asyncio.CancelledError, Exception):  # the disk is another's, who has the lock
        await starting


async def statistics(vm: VM, _guest: Guest) -> None:
    vm.stats()
    await vm.memory.reclaim()


ACTIONS: dict[str, tuple[int, Callable[[VM, Guest], Awaitable[None]]]] = {
    "paused": (20, pause),
    "killed": (3, kill),
    "stopped": (3, stop),
    "closed": (3, close),
    "written to": (20, write),
    "read": (20, read),
    "given up while it started": (3, cancel_start),
    "counted": (5, statistics),
}
"""Weights and deeds."""
