"""Rings where none can be, and indices that cannot be (VIRTIO 1.2 2.7, 4.1.4.3)."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable

from aiovmm.native import lib
from tests.hostile.case import Case, Verdict, for_all
from tests.hostile.rig import RAM, Rig

__all__ = ["CASES"]

Does = Callable[[Rig], Awaitable[None]]
_PARTS = {"table": 0x20, "available": 0x28, "used": 0x30}  # registers of their addresses
_PLACES = {
    "at 0, without alignment": 0x1,
    "beyond memory": 1 << 40,
    "across the end of memory": RAM - 16,
    "at the end of addresses": (1 << 64) - 16,
    "at the top bit": 1 << 63,
    "on registers": 0xC0000000,
}


async def _configured(rig: Rig, **registers: int) -> None:
    """Up to DRIVER_OK, with these registers of the target's queue set after the good ones: name_offset_size to value."""
    driver, index = rig.driver, rig.target.queue
    await driver.reset()
    await driver.negotiate()
    count = driver.common(0x12, 2)
    driver.queues = [await driver._setup_queue(each, 0) for each in range(count)]
    await driver.set_common(0x16, index, 2)
    for where, value in registers.items():
        _, offset, size = where.split("_")
        for half in range(0, int(size), 4):
            await driver.set_common(int(offset, 16) + half, value >> 8 * half & 0xFFFFFFFF, min(int(size), 4))
    for each in range(count):
        await driver.set_common(0x16, each, 2)
        await driver.set_common(0x1C, 1, 2)
    await driver.set_common(0x14, driver.status | 4, 1)


def placed(register: int, address: int) -> Does:
    async def does(rig: Rig) -> None:
        await _configured(rig, **{f"at_{register:x}_8": address})
        rig.queue.kick(force=True)

    return does


def sized(size: int) -> Does:
    async def does(rig: Rig) -> None:
        await _configured(rig, at_18_2=size)
        rig.queue.kick(force=True)

    return does


def same_place() -> Does:
    """All three parts in one place, one on the other."""

    async def does(rig: Rig) -> None:
        address = rig.queue.desc
        await _configured(rig, at_20_8=address, at_28_8=address, at_30_8=address)
        rig.queue.kick(force=True)

    return does


def available(ahead: int) -> Does:
    """The available index is that far ahead of what was offered."""

    async def does(rig: Rig) -> None:
        rig.queue.publish(ahead)
        rig.queue.kick(force=True)

    return does


async def available_of_all(rig: Rig) -> None:
    """All queues of the device break in one turn of the loop."""
    for queue in rig.driver.queues:
        queue.publish(512)
    for queue in rig.driver.queues:
        queue.kick(force=True)


def scribbled(part: str, content: bytes) -> Does:
    """A part of the ring is filled with that, and then a good request made."""

    async def does(rig: Rig) -> None:
        queue = rig.queue
        address = {"available": queue.avail, "used": queue.used_ring}[part]
        length = {"available": 6 + 2 * queue.size, "used": 6 + 8 * queue.size}[part]
        rig.memory.write(address, (content * length)[:length])
        queue.kick(force=True)

    return does


async def used_event_at_random(rig: Rig) -> None:
    """The driver asks for interrupts at places that make no sense, while it makes requests."""
    queue = rig.queue
    for number in range(8):
        lib.avmm_store16(queue._avail_host + 4 + 2 * queue.size, number * 0x1FFF & 0xFFFF)
        rig.offer()
        rig.queue.kick(force=True)
    await rig.settle()


async def available_index_goes_back(rig: Rig) -> None:
    """What was offered is taken back, after the device may have seen it."""
    rig.offer()
    rig.queue.kick(force=True)
    await rig.settle()
    lib.avmm_store16(rig.queue._avail_host + 2, 0)
    rig.queue.kick(force=True)


async def descriptors_are_rewritten_in_flight(rig: Rig) -> None:
    """While the device serves them: lengths, addresses and flags change all the time."""
    queue = rig.queue
    for number in range(16):
        rig.offer()
        queue.kick(force=True)
        for index in range(queue.size):
            entry = struct.pack(
                "<QIHH", 0xFFFF_FFFF_FFFF_0000 >> number * 4, 1 << number, number & 7, index * number & 0xFF
            )
            rig.memory.write(queue.desc + 16 * index, entry)
    await rig.settle()


PLACED = {f"{part} {what}": placed(_PARTS[part], address) for part in _PARTS for what, address in _PLACES.items()}
SIZED = {f"{size} entries": sized(size) for size in (0, 3, 127, 0x8001, 0xFFFF)}
AHEAD = {f"available index {what}": available(by) for what, by in {"two sizes on": 512, "half round": 0x8000}.items()}
SCRIBBLED = {
    f"{part} ring of {content.hex()}": scribbled(part, content)
    for part in ("available", "used")
    for content in (b"\xff", b"\x80", b"\x01\0", b"\xff\x7f")
}

CASES: list[Case] = [
    *for_all("rings", PLACED, Verdict.EITHER),
    *for_all("rings", SIZED, Verdict.EITHER),
    *for_all("rings", {"all parts in one place": same_place()}, Verdict.EITHER),
    *for_all("indices", {**AHEAD, "available indices of all queues": available_of_all}, Verdict.BREAKS),
    *for_all("indices", SCRIBBLED, Verdict.EITHER),
    *for_all("indices", {"goes back": available_index_goes_back}, Verdict.BREAKS),
    *for_all("indices", {"event index at random": used_event_at_random}, Verdict.SERVES),
    *for_all("in flight", {"descriptors are rewritten": descriptors_are_rewritten_in_flight}, Verdict.EITHER),
]
