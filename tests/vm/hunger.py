"""A program that is allowed few descriptors: one guest takes by vsock what it can have, while another reboots. Run by test_many.

Prints "rebooted" and how often, and whether the hungry one was refused connections all the while.
"""

from __future__ import annotations

import asyncio
import os
import resource

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


async def main() -> None:
    """See the module."""
    device, kept, refusals, reboots = make_device(), list[asyncio.StreamWriter](), [0], 0
    async with (
        Harness(device) as harness,
        Guest(harness) as guest,
        await device.streams.listen(80, lambda reader, writer: kept.append(writer)),
        VM(config("r", 2, rng=RngConfig(), on_reboot=RebootPolicy.RESTART)) as vm,
    ):
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        hungry = asyncio.create_task(ask_for_ever(guest, refusals))
        await until(lambda: refusals[0] > 100)
        await vm.start()
        async for event in vm.events(from_start=True):
            reboots += event.kind is EventKind.REBOOTED
            if reboots == REBOOTS:
                break
        print("rebooted", reboots, "refused", refusals[0] > 100 + REBOOTS, vm.status or "")
        hungry.cancel()
        for writer in kept:
            writer.transport.abort()


if __name__ == "__main__":
    asyncio.run(main())
