"""Every width at every place of every structure and of configuration space; interrupts and BARs where they must not be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiovmm.pci.bar import FIRST_BAR
from aiovmm.pci.capabilities import MSIX, VENDOR, VirtioCapType
from aiovmm.pci.driver import finished
from tests.hostile.case import Case, Verdict, for_all
from tests.hostile.rig import DISK_SLOT, PLAN, SLOT, Rig

__all__ = ["CASES"]

Does = Callable[[Rig], Awaitable[None]]
_STRUCTURES = [VirtioCapType.COMMON, VirtioCapType.ISR, VirtioCapType.DEVICE, VirtioCapType.NOTIFY]


def swept(kind: VirtioCapType, width: int, *, write: bool) -> Does:
    """All offsets of a structure, aligned and not, and a little beyond its end."""

    async def does(rig: Rig) -> None:
        structure = rig.driver.structures[kind]
        for offset in range(0, min(structure.length, 72) + 3, 1 if width < 4 else 3):
            address = structure.address + offset
            if write:
                await finished(rig.guest.write(address, b"\xa5" * width))
            else:
                assert len(rig.guest.read(address, width)) == width

    return does


def configuration(value: int, width: int) -> Does:
    """Configuration space written all over, but for what moves it away."""

    async def does(rig: Rig) -> None:
        moving = range(0x04, 0x28)
        for offset in range(0, 256, width):
            if offset not in moving:
                await rig.pci.write(SLOT, offset, value & (1 << 8 * width) - 1, width)
            rig.pci.read(SLOT, offset, width)

    return does


def decoding(times: int) -> Does:
    """COMMAND off and on with requests in flight, and kicks in between."""

    async def does(rig: Rig) -> None:
        for _ in range(times):
            rig.offer()
            rig.queue.kick(force=True)
            await rig.pci.write(SLOT, 0x04, 0, 2)
            rig.queue._kick_device()
            await rig.pci.enable(SLOT)

    return does


def moved(where: Callable[[Rig], int]) -> Does:
    """BAR 0 over something else, used there, and not moved back."""

    async def does(rig: Rig) -> None:
        address = where(rig)
        await rig.pci.write(SLOT, FIRST_BAR, address & 0xFFFFFFFF)
        await rig.pci.write(SLOT, FIRST_BAR + 4, address >> 32)
        await rig.pci.enable(SLOT)
        for offset in (0, 0x14, 0x3000):
            if address < 1 << 32:  # beyond, the guest has no page tables
                rig.guest.read(address + offset, 4)

    return does


def _bar_of_disk(rig: Rig) -> int:
    return rig.pci.read(DISK_SLOT, FIRST_BAR) & ~0xF | rig.pci.read(DISK_SLOT, FIRST_BAR + 4) << 32


def window(bar: int, offset: int, length: int) -> Does:
    """The PCI_CFG capability (4.1.4.9) as a way to places that there are not."""

    async def does(rig: Rig) -> None:
        at = next(
            offset
            for kind, offset in rig.driver.function.capabilities
            if kind == VENDOR and rig.pci.read(SLOT, offset + 3, 1) == VirtioCapType.PCI_CFG
        )
        await rig.pci.write(SLOT, at + 4, bar, 1)
        await rig.pci.write(SLOT, at + 8, offset)
        await rig.pci.write(SLOT, at + 12, length)
        for width in (1, 2, 4):
            rig.pci.read(SLOT, at + 16, width)
            await rig.pci.write(SLOT, at + 16, 0, width)

    return does


def vectors(address: int, data: int, *, masked: bool = False) -> Does:
    """All messages go there, and requests are made."""

    async def does(rig: Rig) -> None:
        function = rig.driver.function
        for vector in range(len(rig.driver.queues) + 1):
            await rig.pci.program_vector(function, vector, address, data, masked=masked)
        for _ in range(4):
            rig.offer()
            rig.queue.kick(force=True)
        await rig.settle()

    return does


async def vectors_beyond_the_table(rig: Rig) -> None:
    driver = rig.driver
    for offset in (0x10, 0x1A):
        for value in (0x800, 0xFFFE, len(driver.queues) + 1):
            await driver.set_common(offset, value, 2)
            assert driver.common(offset, 2) == 0xFFFF
        await driver.set_common(offset, 0 if offset == 0x10 else len(driver.queues), 2)


async def masks_come_and_go(rig: Rig) -> None:
    for turn in range(20):
        await rig.pci.set_msix(rig.driver.function, enabled=True, masked=turn % 2 == 0)
        rig.offer()
        rig.queue.kick(force=True)
    await rig.settle()


async def without_msix(rig: Rig) -> None:
    """Pins instead, in the middle of everything, and nobody looks at them."""
    for _ in range(4):
        await rig.pci.set_msix(rig.driver.function, enabled=False)
        rig.offer()
        rig.queue.kick(force=True)
        await rig.settle()
        await rig.pci.set_msix(rig.driver.function, enabled=True)


async def table_and_pending_bits_of_odd_widths(rig: Rig) -> None:
    function = rig.driver.function
    at = function.capability(MSIX)
    base = next(bar.address for bar in function.bars if bar.index == 0)
    for register in (at + 4, at + 8):
        start = base + (rig.pci.read(SLOT, register) & ~7)
        for width in (1, 2, 4, 8):
            for offset in (0, 1, 8, 13, 16 * 40, 0x7F8):
                rig.guest.read(start + offset, width)
                await finished(rig.guest.write(start + offset, bytes(width)))


SWEPT = {
    f"{'writes' if write else 'reads'} of {width} in {kind.name.lower()}": swept(kind, width, write=write)
    for kind in _STRUCTURES
    for width in (1, 2, 4, 8)
    for write in (False, True)
    if not (write and kind is VirtioCapType.COMMON)
}
COMMON = {f"writes of {width} in common": swept(VirtioCapType.COMMON, width, write=True) for width in (1, 2, 4, 8)}
SPACE = {
    f"configuration space of {value:x} by {width}": configuration(value, width)
    for value in (0, 0xFFFFFFFF, 0xA5A5A5A5)
    for width in (1, 2, 4)
}
PLACES: dict[str, Callable[[Rig], int]] = {
    "memory": lambda rig: 0x200000,
    "address 0": lambda rig: 0,
    "the local APIC": lambda rig: 0xFEE00000,
    "configuration space": lambda rig: PLAN.ecam_base,
    "the other device": _bar_of_disk,
    "the end of addresses": lambda rig: (1 << 64) - (1 << 16),
}
WINDOWS = {
    f"a window to BAR {bar} + {offset:x}, {length}": window(bar, offset, length)
    for bar, offset, length in [
        (0, 0xFFFFFFFF, 4),
        (0, 0xFFFF, 4),
        (1, 0, 4),
        (5, 0, 1),
        (255, 0, 4),
        (0, 0, 3),
        (0, 0, 8),
        (0, 1, 4),
    ]
}
MESSAGES = {
    "messages to memory": vectors(0x200000, 0x41),
    "messages to nowhere": vectors(1 << 40, 0xFFFFFFFF),
    "messages to processors that are not there": vectors(0xFEEFF000, 0x41),
    "messages of reserved kinds": vectors(0xFEE00000, 0x741),
    "messages of vector 0": vectors(0xFEE00000, 0),
    "vectors masked": vectors(0xFEE00000, 0x41, masked=True),
}

CASES: list[Case] = [
    *for_all("width", SWEPT, Verdict.EITHER),
    *for_all("width", COMMON, Verdict.EITHER),
    *for_all("width", {"vector table and pending bits": table_and_pending_bits_of_odd_widths}, Verdict.EITHER),
    *for_all("pci", SPACE, Verdict.EITHER),
    *for_all("pci", {f"BAR over {what}": moved(where) for what, where in PLACES.items()}, Verdict.EITHER),
    *for_all("pci", {"decoding off and on": decoding(10)}, Verdict.EITHER),
    *for_all("window", WINDOWS, Verdict.SERVES),
    *for_all("vectors", MESSAGES, Verdict.EITHER),
    *for_all("vectors", {"masks come and go": masks_come_and_go}, Verdict.SERVES),
    *for_all("vectors", {"beyond the table": vectors_beyond_the_table}, Verdict.SERVES),
    *for_all("vectors", {"without MSI-X": without_msix}, Verdict.EITHER),
]
