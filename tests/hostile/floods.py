"""One thing again and again: the others of the process are to have their turns meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiovmm.pci.bar import FIRST_BAR
from aiovmm.pci.capabilities import VirtioCapType
from aiovmm.pci.driver import finished
from tests.hostile.case import Case, Verdict, for_all
from tests.hostile.rig import SLOT, Rig

__all__ = ["CASES"]

Does = Callable[[Rig], Awaitable[None]]
_TIMES = 60


def again(does: Does, times: int = _TIMES) -> Does:
    async def all_of_them(rig: Rig) -> None:
        for _ in range(times):
            await does(rig)

    return all_of_them


async def kick(rig: Rig) -> None:
    rig.queue.kick(force=True)


async def request(rig: Rig) -> None:
    if rig.queue.outstanding > 20 or len(rig.queue.free) < 3:
        await rig.settle()
        rig.queue.poll()
    rig.offer()
    rig.queue.kick(force=True)


async def reset(rig: Rig) -> None:
    await rig.driver.set_common(0x14, 0, 1)


async def life(rig: Rig) -> None:
    await rig.driver.start()


async def size(rig: Rig) -> None:
    await rig.pci.size_bars(SLOT)


async def decode(rig: Rig) -> None:
    await rig.pci.write(SLOT, 0x04, 0, 2)
    await rig.pci.enable(SLOT)


async def mask(rig: Rig) -> None:
    for masked in (True, False):
        await rig.pci.set_msix(rig.driver.function, enabled=True, masked=masked)


async def configure(rig: Rig) -> None:
    await finished(rig.guest.write(rig.driver.structures[VirtioCapType.DEVICE].address, b"\xff"))


async def isr(rig: Rig) -> None:
    rig.driver.load(VirtioCapType.ISR, 0, 1)


async def move(rig: Rig) -> None:
    address = rig.pci.read(SLOT, FIRST_BAR)
    for there in (address + 0x100000, address):
        await rig.pci.write(SLOT, FIRST_BAR, there)


async def break_and_mend(rig: Rig) -> None:
    rig.queue.publish(0x8000)
    rig.queue.kick(force=True)
    await rig.needs_reset()
    await rig.driver.start()


CASES: list[Case] = [
    *for_all(
        "floods", {"kicks": again(kick), "requests": again(request), "reads of the ISR": again(isr)}, Verdict.SERVES
    ),
    *for_all("floods", {"resets": again(reset)}, Verdict.DEAD),
    *for_all("floods", {"lives": again(life, 10), "breaks": again(break_and_mend, 10)}, Verdict.SERVES),
    *for_all("floods", {"sizing": again(size, 10), "decoding": again(decode), "masks": again(mask)}, Verdict.SERVES),
    *for_all("floods", {"moves": again(move, 20), "configuration": again(configure)}, Verdict.EITHER),
]
