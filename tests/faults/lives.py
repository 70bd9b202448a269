"""Lives of a guest in which calls of the host may fail. Each ends by itself, and leaves nothing, whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiovmm import (
    VM,
    ConsoleConfig,
    ConsoleMode,
    DiskConfig,
    EventKind,
    RebootPolicy,
    RngConfig,
    VMConfig,
    VsockConfig,
)
from tests.vm.guest import config, counts_on, event

__all__ = ["LIVES", "full"]


def full(does: str, place: Path, **changes: Any) -> VMConfig:
    """A guest with a device of each kind that needs no other process and no privilege."""
    disk = place / "disk"
    if not disk.exists():
        disk.write_bytes(bytes(1 << 20))
    return config(
        does,
        2,
        rng=RngConfig(),
        console=ConsoleConfig(ConsoleMode.NULL),
        disks=(DiskConfig(path=disk),),
        vsock=VsockConfig(cid=7, socket=place / "vsock"),
        **changes,
    )


async def start(place: Path) -> None:
    """It starts, is paused, goes on, and is stopped."""
    async with VM(full("s", place)) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.pause()
        await vm.resume()
        await vm.stop(timeout=0.001)


async def reset(place: Path) -> None:
    """It resets itself, and comes again."""
    async with VM(full("er", place, on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        vm.serial.write(b"q")
        ended = asyncio.ensure_future(vm.wait())
        came = asyncio.ensure_future(event(vm, EventKind.REBOOTED))
        await asyncio.wait([ended, came], return_when=asyncio.FIRST_COMPLETED)
        for each in (ended, came):
            if not each.done():
                each.cancel()
        await asyncio.gather(ended, came, return_exceptions=True)
        if ended.done() and not ended.cancelled() and vm.status is not None and vm.status.error is not None:
            raise vm.status.error


async def add(place: Path) -> None:
    """It gets a disk while it runs, and loses it."""
    second = place / "second"
    if not second.exists():
        second.write_bytes(bytes(1 << 16))
    async with VM(full("s", place)) as vm:
        await vm.start()
        await vm.add(DiskConfig(path=second, id="second"), timeout=0)
        await vm.remove("second", timeout=0.001, force=True)


async def snapshot(place: Path) -> None:
    """It is kept, and another goes on from there."""
    kept = place / "kept"
    async with VM(full("s", place)) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(kept)
    async with VM.restore(kept) as again:
        await again.resume()
        await counts_on(again)


LIVES: dict[str, Callable[[Path], Awaitable[None]]] = {f.__name__: f for f in (start, reset, add, snapshot)}
