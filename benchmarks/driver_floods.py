"""What a hostile driver costs its neighbour: it does one slow thing without end, while another VM's exits wait.

The driver is a real vCPU's (tests/guests/agent.S) that a thread of this process tells what to access, which by itself takes
much of the interpreter; so each row is to be compared with the first, of a driver that only reads. The second kind of rows is
how long the thing takes that driver, thread and all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Iterator

import uvloop

from aiovmm import VM
from aiovmm.bus import Range, Space
from aiovmm.kvm import Kvm
from aiovmm.pci.capabilities import MSIX
from aiovmm.pci.driver import finished
from aiovmm.pci.virtio_driver import VirtioPciDriver
from benchmarks.harness import Options, Result
from tests.guests.machine import Machine
from tests.pci.test_kvm import Running
from tests.vm.guest import config, counter, counts_on

NEEDS_KVM = True
SLOT, COMMAND, BAR0 = 1, 0x04, 0x10
IOAPIC, PIN = 0xFEC00000, 9

Thing = Callable[[VirtioPciDriver], Awaitable[None]]


async def read(driver: VirtioPciDriver) -> None:
    """The device's status."""
    assert driver.status


async def decode(driver: VirtioPciDriver) -> None:
    """COMMAND.MEM off and on."""
    await driver.pci.write(SLOT, COMMAND, 0, 2)
    await driver.pci.enable(SLOT)


async def mask(driver: VirtioPciDriver) -> None:
    """The function mask of MSI-X on and off."""
    control = next(offset for kind, offset in driver.function.capabilities if kind == MSIX) + 2
    await driver.pci.write(SLOT, control, 0xC000, 2)
    await driver.pci.write(SLOT, control, 0x8000, 2)


async def size(driver: VirtioPciDriver) -> None:
    """How large BAR 0 is, as drivers find out."""
    address = driver.pci.read(SLOT, BAR0)
    await driver.pci.write(SLOT, BAR0, 0xFFFFFFFF)
    driver.pci.read(SLOT, BAR0)
    await driver.pci.write(SLOT, BAR0, address)


async def route(driver: VirtioPciDriver) -> None:
    """A pin of the I/O APIC to another vector, masked and opened, as a driver of its own does."""
    for low in (1 << 16, 0x8031, 1 << 16, 0x8032):  # level-triggered: KVM is told
        await finished(driver.guest.write(IOAPIC, (0x10 + 2 * PIN).to_bytes(4, "little")))
        await finished(driver.guest.write(IOAPIC + 0x10, low.to_bytes(4, "little")))


async def reset(driver: VirtioPciDriver) -> None:
    """A reset, and up to DRIVER_OK again."""
    await driver.reset()
    await driver.start()


THINGS: dict[str, Thing] = {
    "reads a register": read,
    "turns decoding off and on": decode,
    "masks and unmasks all vectors": mask,
    "routes a pin of the I/O APIC anew": route,
    "sizes a BAR": size,
    "resets its device": reset,
}


async def beside(thing: Thing, seconds: float) -> tuple[float, float]:
    """Seconds of a neighbour's exit, and of the thing."""
    began = done = seen = 0.0
    with Kvm.open() as kvm:
        async with VM(config("x")) as asking, Machine("agent", kvm=kvm, ram=[(0, 8 << 20)]) as machine:
            await asking.start()
            await counts_on(asking)

            async def scenario(driver: VirtioPciDriver) -> None:
                nonlocal began, done, seen
                await driver.start()
                await thing(driver)
                began, seen = time.perf_counter(), counter(asking)
                while time.perf_counter() < began + seconds:
                    await thing(driver)
                    done += 1

            running = Running(machine)
            ioapic = running.ioapic
            machine.bus.add(Range(Space.MMIO, IOAPIC, ioapic.SIZE, ioapic, "ioapic", ioapic.fast))
            await running.drive(scenario)
            took = time.perf_counter() - began
            return took / max(counter(asking) - seen, 1), took / max(done, 1)


def run(options: Options) -> Iterator[Result]:
    """Two rows for each thing, in microseconds."""
    for name, thing in THINGS.items():
        print(name, file=sys.stderr)
        pairs = [uvloop.run(beside(thing, options.pick(1.0, 0.1))) for _ in range(options.rounds)]
        for row, values in zip(
            (f"a waiting exit, beside a driver that {name}", f"a driver that {name}"),
            zip(*pairs, strict=True),
            strict=True,
        ):
            yield Result(row, "us", samples={"aiovmm": [1e6 * value for value in values]})
