"""The guests of a soak, and what happens to them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
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
from aiovmm.devices.virtio.blk.protocol import Request
from aiovmm.errors import ConsoleEnded, StateError
from tests.devices.virtio.blk_driver import header
from tests.vhost_user.killable import Daemon
from tests.vm.drivers import start_drivers
from tests.vm.guest import config

__all__ = ["ACTIONS", "Guest"]

LONG = 120.0
"""Seconds after which something hangs."""

ROLES = {
    "echoes": "he",
    "prints": "hw",
    "asks": "hx",
    "computes": "hs",
    "floods": "hn",
    "idles": "hi",
    "plugs": "hP",
    "resets": "hr",
    "powers off": "ho",
}
"""What a guest does, by the letters of tests/guests/kernel.S. The last two end, or begin anew, all the time."""

PEER = "idles"
"""Whose disk is another process's, which dies now and then."""

BRIEF = frozenset({"resets", "powers off"})
STEADY = frozenset(ROLES) - BRIEF


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
        (place / "plugged").write_bytes(bytes(1 << 20))
        self.back_end = Daemon(place / "peer", place / "disk") if role == PEER else None

    def config(self) -> VMConfig:
        return config(
            ROLES[self.role],
            cpus=self.random.choice((1, 1, 2)),
            memory=MemoryConfig(4 << 20, shared=self.role == PEER or self.random.random() < 0.2),
            rng=RngConfig(),
            disks=(self._disk(),),
            pmems=(PmemConfig(file=self._place / "pmem"),),
            vsock=VsockConfig(cid=3, socket=self._place / "vsock"),
            balloon=BalloonConfig(),
            name=self.role,
            on_reboot=RebootPolicy.RESTART,
        )

    def _disk(self) -> DiskConfig:
        if self.role == PEER:
            return DiskConfig(vhost_user=True, socket=self._place / "peer")
        return DiskConfig(path=self._place / "disk")

    @property
    def plugged(self) -> DiskConfig:
        """One that comes and goes."""
        return DiskConfig(path=self._place / "plugged")

    async def live(self, until: asyncio.Event) -> None:
        """One VM after the other, and something happening to each."""
        if self.back_end is None:
            return await self._live(until)
        self.back_end.start()
        try:
            await self._live(until)
        finally:
            await self.back_end.kill()

    async def _live(self, until: asyncio.Event) -> None:
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
        possible = {name: deed for name, deed in ACTIONS.items() if self.role in deed.roles}
        name = self.random.choices(list(possible), [deed.weight for deed in possible.values()])[0]
        with suppress(StateError, ConsoleEnded):  # it has ended meanwhile
            await possible[name].do(vm, self)
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


async def drive(vm: VM, guest: Guest) -> None:
    """A driver for each device begins anew, and has what it writes back."""
    drivers = await start_drivers(vm)
    disk, sector = drivers["disk0"], guest.random.randrange(2040)
    content = guest.random.randbytes(4096)
    assert (await disk.request(0, [header(Request.OUT, sector), content], [1], LONG))[-1] == 0
    assert await disk.request(0, [header(Request.IN, sector)], [4096, 1], LONG) == content + b"\0"
    assert len(await drivers["rng"].request(0, [], [64], LONG)) == 64
    assert await drivers["pmem"].request(0, [bytes(4)], [4], LONG) == bytes(4)


async def resize(vm: VM, guest: Guest) -> None:
    """Disks, and what the guest is to do without."""
    for disk in vm.disks:
        await disk.resize(guest.random.randrange(2, 5) << 19)
    with suppress(TimeoutError):
        await vm.balloon.resize(guest.random.randrange(4) << 18, timeout=0.05)


async def plug(vm: VM, guest: Guest) -> None:
    """A disk comes, and goes again."""
    await vm.remove(await vm.add(guest.plugged, timeout=LONG), timeout=LONG)


async def back_end_dies(vm: VM, guest: Guest) -> None:
    """Killed, and another in its place, which the driver does not notice."""
    assert guest.back_end is not None, "its role says so"
    disk = (await start_drivers(vm))["disk0"]
    await guest.back_end.kill()
    asked = asyncio.create_task(disk.request(0, [header(Request.IN)], [4096, 1], LONG))
    await asyncio.sleep(guest.random.uniform(0, 0.05))
    guest.back_end.start()
    assert (await asked)[-1] == 0


@dataclass(frozen=True)
class Deed:
    """How often, in the measure of the others, what, and to whom."""

    weight: int
    do: Callable[[VM, Guest], Awaitable[None]]
    roles: Collection[str] = frozenset(ROLES)


ACTIONS = {
    "paused": Deed(20, pause),
    "killed": Deed(3, kill),
    "stopped": Deed(3, stop),
    "closed": Deed(3, close),
    "written to": Deed(20, write),
    "read": Deed(20, read),
    "given up while it started": Deed(3, cancel_start),
    "counted": Deed(5, statistics),
    "driven": Deed(20, drive, STEADY),
    "resized": Deed(5, resize, STEADY),
    "plugged": Deed(40, plug, {"plugs"}),
    "bereft of a back end": Deed(5, back_end_dies, {PEER}),
}
