"""Configurations of bare-metal guests, and waiting for what they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from aiovmm import VM, CpusConfig, EventKind, MemoryConfig, PayloadConfig, VMConfig
from tests.guests import build_kernel
from tests.limits import HANGS

__all__ = ["config", "counter", "counts_on", "event", "until"]

COUNTER = 0x60000


def config(does: str, cpus: int = 1, *, kernel: str = "kernel", **changes: Any) -> VMConfig:
    """A small VM whose guest does what the letters `does` say; see tests/guests/kernel.S."""
    payload = PayloadConfig(build_kernel(kernel), None, does)
    base = VMConfig(payload, CpusConfig(cpus), MemoryConfig(4 << 20), rng=None, name="guest")
    return replace(base, **changes)


async def until(condition: Callable[[], bool], timeout: float = HANGS) -> None:
    """Wait until the guest, or the monitor, has brought about `condition`."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come about")
        await asyncio.sleep(0.0005)


def counter(vm: VM) -> int:
    """What the guest has counted."""
    return int.from_bytes(vm.machine.memory.read(COUNTER, 4), "little")


async def counts_on(vm: VM, by: int = 1) -> None:
    """Wait until the guest has counted on: it runs."""
    seen = counter(vm)
    await until(lambda: (counter(vm) - seen) % (1 << 32) >= by)


async def event(vm: VM, kind: EventKind, count: int = 1, timeout: float = HANGS) -> None:
    """Wait until there have been `count` events of a kind."""
    async with asyncio.timeout(timeout):
        async for seen in vm.events(from_start=True):
            count -= seen.kind is kind
            if count == 0:
                return
    raise AssertionError(f"the VM ended ({vm.status}) before {kind}")
