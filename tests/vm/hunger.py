"""A program that is allowed few descriptors: one guest takes by vsock what it can have, while others reboot. Run by test_many,
with how many these are.

Prints "rebooted" and how often in all, and whether the hungry one was refused connections all the while.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from contextlib import AsyncExitStack
from dataclasses import replace

from aiovmm import VM, EventKind, RebootPolicy, RngConfig
from aiovmm.testing import Harness
from tests.devices.virtio.vsock.guest import Guest, make_device
from tests.vm.guest import config, until

REBOOTS = 5


async def ask_for_ever(guest: Guest, refusals: list[int]) -> None:
    """All that are to be had, and again as soon as there may be more."""
    while True:
        try:
            await guest.connect(80)
        except ConnectionRefusedError:
            refusals[0] += 1
            await asyncio.sleep(0)


async def reboot(vm: VM) -> int:
    """Again and again, all guests at the same time: how often it came to that."""
    reboots = 0
    async for event in vm.events(from_start=True):
        reboots += event.kind is EventKind.REBOOTED
        if reboots == REBOOTS:
            break
        if event.kind in (EventKind.STARTED, EventKind.REBOOTED):
            vm.serial.write(b"q")
    if vm.status is not None:
        print(vm.status)
    return reboots


async def main(guests: int) -> None:
    """See the module."""
    device, kept, refusals = make_device(), list[asyncio.StreamWriter](), [0]
    async with AsyncExitStack() as stack:
        guest = await stack.enter_async_context(Guest(await stack.enter_async_context(Harness(device))))
        await stack.enter_async_context(await device.streams.listen(80, lambda reader, writer: kept.append(writer)))
        base = config("er", 4, rng=RngConfig(), on_reboot=RebootPolicy.RESTART)
        vms = [await stack.enter_async_context(VM(replace(base, name=f"vm{n}"))) for n in range(guests)]
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        hungry = asyncio.create_task(ask_for_ever(guest, refusals))
        await until(lambda: refusals[0] > 100)
        await asyncio.gather(*(vm.start() for vm in vms))
        reboots = sum(await asyncio.gather(*map(reboot, vms)))
        print("rebooted", reboots, "refused", refusals[0] > 100 + REBOOTS)
        hungry.cancel()
        for writer in kept:
            writer.transport.abort()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
